//! What was typed and has not been read yet: domain 0's bytes, and the hypervisor's commands.
//!
//! The console's lock guards it.

use super::serial::Serial;
use arrayvec::ArrayVec;
use proxenos_core::console_keys::{Action, Command, Keys, Listener};

/// Bytes that are kept for domain 0; what comes when there is no room is dropped.
const SIZE: usize = 1024;
/// Commands that are kept until somebody carries them out.
const COMMANDS: usize = 8;
/// Bytes taken from the port at once: more than any UART holds, so that one that always claims to have some holds
/// nobody up.
const AT_ONCE: usize = 4096;

/// What the port has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// Bytes for domain 0, where none waited before.
    pub for_domain0: bool,
    /// Commands.
    pub commands: bool,
    /// Whoever listens now, if that has changed.
    pub switched: Option<Listener>,
}

/// What waits.
pub struct Input {
    keys: Keys,
    bytes: [u8; SIZE],
    /// How many bytes have ever been put in and taken out.
    put: usize,
    taken: usize,
    commands: ArrayVec<Command, COMMANDS>,
}

impl Input {
    /// Nothing.
    pub const fn new() -> Self {
        Self { keys: Keys::new(), bytes: [0; SIZE], put: 0, taken: 0, commands: ArrayVec::new_const() }
    }

    /// Takes what the port has.
    pub fn fetch(&mut self, serial: &mut Serial) -> Arrived {
        let mut arrived = Arrived::default();
        for _ in 0..AT_ONCE {
            let Some(byte) = serial.try_read() else { break };
            for action in self.keys.typed(byte) {
                match action {
                    Action::Deliver(byte) => {
                        arrived.for_domain0 |= self.put == self.taken;
                        self.deliver(byte);
                    }
                    Action::Command(command) => {
                        arrived.commands |= self.commands.try_push(command).is_ok();
                    }
                    Action::Switched(listener) => arrived.switched = Some(listener),
                }
            }
        }
        arrived
    }

    fn deliver(&mut self, byte: u8) {
        if self.put.wrapping_sub(self.taken) < SIZE {
            self.bytes[self.put % SIZE] = byte;
            self.put = self.put.wrapping_add(1);
        }
    }

    /// The next of domain 0's bytes.
    pub fn take_byte(&mut self) -> Option<u8> {
        if self.put == self.taken {
            return None;
        }
        let byte = self.bytes[self.taken % SIZE];
        self.taken = self.taken.wrapping_add(1);
        Some(byte)
    }

    /// The next command.
    pub fn take_command(&mut self) -> Option<Command> {
        self.commands.pop_at(0)
    }
}
