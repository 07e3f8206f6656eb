"""`compare`: trains one detector in several ways, and says what the differences are worth."""
