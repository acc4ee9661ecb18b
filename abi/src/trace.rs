//! Trace buffers (`trace.h`).
//!
//! `DOM0_GETTBUFS` gives the machine address of the buffers, one a CPU and each of the same size. A buffer begins with
//! a [`TraceBuffer`]; the header declares these structures without packing, and lays them out alike with it.

use crate::arch::{GuestArch, X86_32, X86_64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One record (`struct t_rec`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct TraceRecord {
    /// Time-stamp counter, in cycles.
    pub cycles: u64,
    /// What happened.
    pub event: u32,
    /// Data.
    pub d1: u32,
    /// Data.
    pub d2: u32,
    /// Data.
    pub d3: u32,
    /// Data.
    pub d4: u32,
    /// Data.
    pub d5: u32,
}

layout!(TraceRecord: 32 { cycles: 0, event: 8, d1: 12, d2: 16, d3: 20, d4: 24, d5: 28 });

/// A buffer's head (`struct t_buf`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct TraceBuffer<A: GuestArch> {
    /// Machine address of the records.
    pub data: A::Word,
    /// Number of records there is room for.
    pub size: A::Word,
    /// Index of the newest record.
    pub head: A::Word,
    /// The hypervisor's own: where the newest record lies.
    pub head_ptr: A::Word,
    /// The hypervisor's own: where the records lie.
    pub vdata: A::Word,
}

layout!(TraceBuffer<X86_32>: 20 { data: 0, size: 4, head: 8, head_ptr: 12, vdata: 16 });
layout!(TraceBuffer<X86_64>: 40 { data: 0, size: 8, head: 16, head_ptr: 24, vdata: 32 });
