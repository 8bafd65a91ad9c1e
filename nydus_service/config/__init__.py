"""What this program is told by file, environment and options. Nothing else reads os.environ.

`environment.Settings` are for the command line: what an option that was not given defaults to.
`sections.Config` is the daemon's: a TOML file, variables above it, options of `serve` above those. They are
apart so that a command line need not load what it takes to read such a file.
"""
