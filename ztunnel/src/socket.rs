//! What the kernel must be told about sockets: original destination, marks, spoofed sources, keepalive.
