"""The configuration from files, environment and options. No other package reads os.environ.

`environment.Settings` has the defaults of options that are not given on the command line.
`sections.DaemonConfig` is the daemon's configuration: a TOML file, overridden by variables, overridden by
options of `serve`. They are separate so that commands need not load the code that reads the file.
"""
