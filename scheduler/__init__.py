"""Policy and accounting in integers; standard library only."""
