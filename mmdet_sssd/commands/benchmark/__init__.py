"""What training steps cost: a detector and its distilled arms, side by side, on made-up data."""
