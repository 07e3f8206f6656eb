"""What is done with the method: train, test, wrap, compare, sweep, draw. The method uses none of it."""
