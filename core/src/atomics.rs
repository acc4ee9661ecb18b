//! The atomics that the frame table and a domain's run state are made of: the processor's. `core/frame-model` and
//! `core/event-model` compile the same code over a model checker's.

pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
