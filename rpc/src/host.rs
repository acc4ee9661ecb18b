//! The host as a whole: what it has, its logs, its trace buffers.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Kib, List, MAX_CHUNK, MAX_CPUS, MAX_RECORDS, MAX_TEXT, Nanos, Scheduler, Text};

/// The host (`DOM0_PHYSINFO`, `xen_version` and the control domain's own).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The hypervisor's name and version.
    pub hypervisor: Text<MAX_TEXT>,
    /// The control domain's.
    pub control: Text<MAX_TEXT>,
    /// The interface's version as `xen_version` has it, major and minor.
    pub interface: (u16, u16),
    /// CPUs that run guests.
    pub cpus: u32,
    /// What each does, in kHz.
    pub cpu_khz: u64,
    /// The machine's memory.
    pub memory: Kib,
    /// What of it is nobody's.
    pub memory_free: Kib,
    /// The control domain's own.
    pub control_memory: Kib,
    /// The time since the host was started.
    pub uptime: Nanos,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// How many domains there are, the control domain among them.
    pub domains: u32,
}

/// What the control domain does with its memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlMemory {
    /// In use: images, consoles, what is known of domains.
    pub used: u64,
    /// Taken for such things so far, and kept.
    pub heap: u64,
    /// Not taken for anything yet.
    pub left: u64,
}

/// A log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Log {
    /// The hypervisor's (`DOM0_READCONSOLE`).
    Hypervisor,
    /// The control domain's own.
    Control,
}

/// A piece of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Where it begins, in bytes since the host was started: later than asked for where something has been overwritten.
    pub from: u64,
    /// The bytes.
    pub bytes: Bytes<MAX_CHUNK>,
    /// Where the log ends at the moment; to be read on from `from` and the length until that is reached.
    pub end: u64,
}

/// A record of the trace (`struct t_rec`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// Time-stamp counter, in cycles.
    pub cycles: u64,
    /// What happened.
    pub event: u32,
    /// Five words that say more.
    pub data: [u32; 5],
}

/// How far a CPU's trace has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceCpu {
    /// The CPU.
    pub cpu: u32,
    /// Number of its oldest record that is still there, counted since the host was started.
    pub first: u64,
    /// Number of the record that it writes next.
    pub next: u64,
}

/// Records of one CPU, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePart {
    /// All CPUs.
    pub cpus: List<TraceCpu, MAX_CPUS>,
    /// Number of the first record here: later than asked for where some have been overwritten.
    pub from: u64,
    /// The records.
    pub records: List<TraceRecord, MAX_RECORDS>,
}
