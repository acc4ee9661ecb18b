//! The server against a host and guests that lie.
