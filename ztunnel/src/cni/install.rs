//! Installs the plugin on the node, keeps it there, and takes it away again.
