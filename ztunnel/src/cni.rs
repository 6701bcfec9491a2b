//! The chained CNI plugin: `ztunnel cni`, its protocol with ztunnel, and its installation on the node.
