//! Who what is typed at the machine's console is for: domain 0, or the hypervisor, which takes single keys as commands.
//!
//! Ctrl-A three times in a row gives it to the other. The three are nobody's; fewer are passed on when something else
//! follows, as in Xen 2.0. No lock: a [`Keys`] belongs to the console's.

use arrayvec::ArrayVec;

/// Ctrl-A.
const SWITCH: u8 = 1;
/// How often it is typed to switch.
const TIMES: u8 = 3;

/// Who gets what is typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// Domain 0, by `console_io`.
    Domain0,
    /// The hypervisor.
    Hypervisor,
}

/// What becomes of a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It is domain 0's to read.
    Deliver(u8),
    /// It is a command.
    Command(Command),
    /// From now on what is typed is for another.
    Switched(Listener),
}

/// A key that the hypervisor knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `h`: the list of keys.
    Help,
    /// `d`: the registers of whatever the CPU was doing.
    Registers,
    /// `q`: the domains' states; each is sent VIRQ_DEBUG.
    Domains,
    /// `R`: the machine starts again.
    Reboot,
}

impl Command {
    /// All of them, with their keys and what a user is told of them.
    pub const ALL: [(u8, Self, &'static str); 4] = [
        (b'd', Self::Registers, "registers of all domains"),
        (b'h', Self::Help, "this list"),
        (b'q', Self::Domains, "domains' states; each gets VIRQ_DEBUG"),
        (b'R', Self::Reboot, "reboot the machine"),
    ];

    fn of_key(key: u8) -> Option<Self> {
        Self::ALL.iter().find(|(known, ..)| *known == key).map(|(_, command, _)| *command)
    }
}

/// The switch.
#[derive(Debug)]
pub struct Keys {
    listener: Listener,
    /// How many Ctrl-A have come in a row.
    switches: u8,
}

impl Default for Keys {
    fn default() -> Self {
        Self::new()
    }
}

impl Keys {
    /// Domain 0 listens.
    #[must_use]
    pub const fn new() -> Self {
        Self { listener: Listener::Domain0, switches: 0 }
    }

    /// Takes a byte that was typed.
    pub fn typed(&mut self, byte: u8) -> ArrayVec<Action, { TIMES as usize }> {
        let mut actions = ArrayVec::new();
        if byte == SWITCH {
            self.switches += 1;
            if self.switches == TIMES {
                self.switches = 0;
                self.listener = match self.listener {
                    Listener::Domain0 => Listener::Hypervisor,
                    Listener::Hypervisor => Listener::Domain0,
                };
                actions.push(Action::Switched(self.listener));
            }
            return actions;
        }
        let held_back = core::mem::take(&mut self.switches);
        for byte in core::iter::repeat_n(SWITCH, held_back.into()).chain([byte]) {
            match self.listener {
                Listener::Domain0 => actions.push(Action::Deliver(byte)),
                Listener::Hypervisor => actions.extend(Command::of_key(byte).map(Action::Command)),
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn typed(keys: &mut Keys, bytes: &[u8]) -> Vec<Action> {
        bytes.iter().flat_map(|&byte| keys.typed(byte)).collect()
    }

    #[test]
    fn three_in_a_row_switch() {
        let mut keys = Keys::new();
        assert_eq!(typed(&mut keys, b"aq"), [Action::Deliver(b'a'), Action::Deliver(b'q')]);
        assert_eq!(typed(&mut keys, b"\x01\x01\x01"), [Action::Switched(Listener::Hypervisor)]);
        assert_eq!(
            typed(&mut keys, b"qx\x01hdR"),
            [Command::Domains, Command::Help, Command::Registers, Command::Reboot].map(Action::Command)
        );
        assert_eq!(
            typed(&mut keys, b"\x01\x01\x01\x01\x01\x01\x01\x01\x01"),
            [
                Action::Switched(Listener::Domain0),
                Action::Switched(Listener::Hypervisor),
                Action::Switched(Listener::Domain0),
            ]
        );
    }

    #[test]
    fn fewer_are_passed_on() {
        let mut keys = Keys::new();
        assert_eq!(typed(&mut keys, b"\x01\x01"), []);
        assert_eq!(typed(&mut keys, b"b"), [1, 1, b'b'].map(Action::Deliver));
        assert_eq!(typed(&mut keys, b"\x01c\x01d"), [1, b'c', 1, b'd'].map(Action::Deliver));
    }
}
