//! Finds a running pod's network namespace by the pod's UID.
