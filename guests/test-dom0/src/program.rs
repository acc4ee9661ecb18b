//! What small domains do: a few instructions each, for both architectures.

use crate::builder::{CODE, COUNTER, SPARE, Subject};
use proxenos_guest::abi::Hypercall;
use proxenos_guest::abi::hypercall::VmAssistType;

/// Bytes of code.
pub const CODE_BYTES: usize = 96;

/// What a small domain does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// Counts, for good.
    Count,
    /// Shuts down, for this reason.
    ShutDown(u8),
    /// Executes what is no instruction, and has no handler for it.
    Crash,
    /// The same, with a handler, and nothing where its stack should be.
    CrashTwice,
    /// Writes an entry that cannot be to a page table that it has opened by writing to it, and goes on.
    BadTable,
    /// Waits for an event, again and again.
    Block,
    /// Notes the TSC where it would count, and goes on.
    Stamp,
}

impl Program {
    /// Its code, position by position the same for both architectures but for how a call is made.
    pub fn code(self, subject: Subject, into: &mut [u8; CODE_BYTES]) {
        into.fill(0x90);
        let sched_op = Hypercall::SchedOp.raw() as u8;
        // mov eax, SCHED_OP; mov ebx (edi), op; int 0x82 (syscall)
        let call = |op: u8, reason: u8| match subject {
            Subject::Narrow => [0xb8, sched_op, 0, 0, 0, 0xbb, op, reason, 0, 0, 0xcd, 0x82],
            Subject::Wide => [0xb8, sched_op, 0, 0, 0, 0xbf, op, reason, 0, 0, 0x0f, 0x05],
        };
        match self {
            Self::Count => {
                // inc dword [counter]; jmp back
                let at = match subject {
                    Subject::Narrow => (subject.base() + 4096 * COUNTER as u64) as u32,
                    Subject::Wide => (4096 * (COUNTER - CODE) - 6) as u32,
                };
                into[..2].copy_from_slice(&[0xff, 0x05]);
                into[2..6].copy_from_slice(&at.to_le_bytes());
                into[6..8].copy_from_slice(&[0xeb, 0xf8]);
            }
            Self::ShutDown(reason) => {
                into[..12].copy_from_slice(&call(2, reason));
                into[12..14].copy_from_slice(&[0xeb, 0xfe]);
            }
            Self::Crash => into[..4].copy_from_slice(&[0x0f, 0x0b, 0xeb, 0xfc]),
            Self::CrashTwice => {
                // mov esp (rsp), 0x1000; ud2
                let all: &[u8] = match subject {
                    Subject::Narrow => &[0xbc, 0, 0x10, 0, 0, 0x0f, 0x0b],
                    Subject::Wide => &[0x48, 0xc7, 0xc4, 0, 0x10, 0, 0, 0x0f, 0x0b],
                };
                into[..all.len()].copy_from_slice(all);
            }
            Self::BadTable => {
                let vm_assist = Hypercall::VmAssist.raw() as u8;
                let kind = VmAssistType::WritablePagetables.raw() as u8;
                let mut length = 0;
                let mut put = |bytes: &[u8]| {
                    into[length..length + bytes.len()].copy_from_slice(bytes);
                    length += bytes.len();
                };
                // vm_assist(enable, ..); ebx (rbx) = the table
                match subject {
                    Subject::Narrow => {
                        put(&[0xb8, vm_assist, 0, 0, 0, 0xbb, 0, 0, 0, 0, 0xb9, kind, 0, 0, 0, 0xcd, 0x82, 0xbb]);
                        put(&((subject.base() + 4096 * SPARE as u64) as u32).to_le_bytes());
                    }
                    Subject::Wide => {
                        put(&[0xb8, vm_assist, 0, 0, 0, 0xbf, 0, 0, 0, 0, 0xbe, kind, 0, 0, 0, 0x0f, 0x05]);
                        // Behind this instruction.
                        put(&[0x48, 0x8d, 0x1d]);
                        put(&(4096 * (SPARE - CODE) as u32 - 24).to_le_bytes());
                    }
                }
                // mov ecx, 6; then as often: mov dword [ebx], 0x1000; add ebx, 8
                put(&[0xb9, 6, 0, 0, 0]);
                match subject {
                    Subject::Narrow => put(&[0xc7, 0x03, 0, 0x10, 0, 0, 0x83, 0xc3, 8, 0xe2, 0xf5]),
                    Subject::Wide => put(&[0xc7, 0x03, 0, 0x10, 0, 0, 0x48, 0x83, 0xc3, 8, 0xe2, 0xf4]),
                }
                // mov dword [ebx], the first frame of the machine, writable; jmp to itself
                put(&[0xc7, 0x03, 0x63, 0, 0, 0, 0xeb, 0xfe]);
            }
            Self::Stamp => {
                // rdtsc; mov [counter], eax; mov [counter + 4], edx; jmp to itself
                let at = |behind: usize, offset: u32| match subject {
                    Subject::Narrow => (subject.base() + 4096 * COUNTER as u64) as u32 + offset,
                    Subject::Wide => (4096 * (COUNTER - CODE) - behind) as u32 + offset,
                };
                into[..4].copy_from_slice(&[0x0f, 0x31, 0x89, 0x05]);
                into[4..8].copy_from_slice(&at(8, 0).to_le_bytes());
                into[8..10].copy_from_slice(&[0x89, 0x15]);
                into[10..14].copy_from_slice(&at(14, 4).to_le_bytes());
                into[14..16].copy_from_slice(&[0xeb, 0xfe]);
            }
            Self::Block => {
                into[..12].copy_from_slice(&call(1, 0));
                into[12..14].copy_from_slice(&[0xeb, 0xf2]);
            }
        }
    }

    /// What is in ebx (rbx) and esp (rsp) when it has crashed, where it has changed them.
    pub const fn leaves(self, subject: Subject) -> (Option<u64>, Option<u64>) {
        match self {
            Self::CrashTwice => (None, Some(0x1000)),
            Self::BadTable => (Some(subject.base() + 4096 * SPARE as u64 + 6 * 8), None),
            _ => (None, None),
        }
    }

    /// Where it stands when it has crashed, from its beginning: the bytes before that.
    pub const fn crashes_at(self, subject: Subject) -> u64 {
        match (self, subject) {
            (Self::CrashTwice, Subject::Narrow) => 5,
            (Self::CrashTwice, Subject::Wide) => 7,
            (Self::BadTable, Subject::Narrow) => 22 + 5 + 11 + 6,
            (Self::BadTable, Subject::Wide) => 24 + 5 + 12 + 6,
            _ => 0,
        }
    }
}
