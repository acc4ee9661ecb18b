//! The atomics that the frame table is made of: the processor's. `core/frame-model` compiles the same table over a model
//! checker's.

pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
