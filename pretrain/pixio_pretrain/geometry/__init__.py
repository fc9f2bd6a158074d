"""Training of geometry on a frozen encoder: heads for depth, the trunk for several views, and what they are worth."""
