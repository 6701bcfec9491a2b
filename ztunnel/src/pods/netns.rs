//! Runs a closure in a pod's network namespace; sockets born there stay there.
