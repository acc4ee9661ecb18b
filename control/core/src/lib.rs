//! What the control domain decides, apart from how it asks the hypervisor: sessions on the host's channels, consoles,
//! the guests' control interfaces, images, and the life of domains.
//!
//! [`Server`] is all of it. It sees the hypervisor through [`Host`], a guest's shared page through [`Link`], and time
//! as a number that it is told; so the very code that runs in domain 0 runs in host tests, against hosts and guests
//! that lie.
//!
//! Promises, whatever a guest or a client does:
//! - nothing grows without a bound: what a channel may have open is counted, what it has not read keeps it from being
//!   heard, and a guest's output falls out of its scroll-back;
//! - work is done in turns, and in each a guest gets at most [`Server::MESSAGES_A_TURN`] of its messages looked at;
//! - a guest that corrupts its rings is not listened to until they make sense again, and nobody else notices;
//! - every call is answered exactly once, at its deadline at the latest.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod channel;
pub mod control;
mod domain;
pub mod gzip;
mod host;
mod images;
mod making;
mod scrollback;
mod server;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use control::Link;
pub use host::{Begun, Host, Machine, Order, Status, Step};
pub use scrollback::Scrollback;
pub use server::{Server, Work};
