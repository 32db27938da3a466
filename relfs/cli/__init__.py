"""The two commands. Anything heavy is imported only by the command that needs it."""
