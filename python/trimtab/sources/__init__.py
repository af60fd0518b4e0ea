"""Where snapshots come from: reports of the Lua hook, or a VTS status page."""
