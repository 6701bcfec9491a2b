//! Tables and round trips of CONNECT heads.
