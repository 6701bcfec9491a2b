//! Installs, checks and removes redirection in the current network namespace.
