"""The process that keeps a mount: what it runs, how it is started and ended, who may ask it for what."""
