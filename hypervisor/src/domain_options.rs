//! Domains that the loader brings: what the command line of their module says of them.
//!
//! A module is the kernel of a further domain if the first word behind its file name is `domain`:
//!
//!     guest.elf domain mem=8M weight=50 -- the guest's command line
//!
//! | option                   | meaning                                                                                 |
//! |--------------------------|-----------------------------------------------------------------------------------------|
//! | `mem=SIZE`               | its memory: a number with suffix K, M or G (without one: K); default 16M                |
//! | `shadow=SIZE`            | the most memory that its shadow page tables may take; default: by its memory            |
//! | `cpu=N`                  | it runs on CPU N only                                                                   |
//! | `weight=N`               | under `sched=bvt`: its share of a CPU, 1 to 1000; default 100                           |
//! | `reserve=SLICE/PERIOD`   | under `sched=atropos`: so many microseconds of every so many                            |
//!
//! What follows the word `--` is its own. This module uses nothing but `core` and [`crate::options`], so that host
//! tests can include both.

use crate::options::{Bytes, Complaint, Micros, decimal, micros, size, split_guest_part};

/// What is said of a domain. What is not said keeps its default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainOptions<'a> {
    /// `mem`.
    pub memory: Bytes,
    /// `shadow`.
    pub shadow: Option<Bytes>,
    /// `cpu`.
    pub cpu: Option<u16>,
    /// `weight`.
    pub weight: Option<Weight>,
    /// `reserve`.
    pub reserve: Option<Reservation>,
    /// The guest's own command line.
    pub command_line: &'a str,
}

/// A share of a CPU, in relation to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weight(pub u32);

impl Weight {
    /// The most there is.
    pub const MAX: u32 = 1000;
}

/// So much of every period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// How much.
    pub slice: Micros,
    /// How often.
    pub period: Micros,
}

impl<'a> DomainOptions<'a> {
    /// Reads a module's command line; `None` if it is no domain's. Each word that is not understood is passed to
    /// `complain` and otherwise ignored; of an option that is given twice the last counts.
    pub fn parse(module: &'a str, complain: &mut dyn FnMut(Complaint<'a>)) -> Option<Self> {
        let (own, command_line) = split_guest_part(module);
        let mut words = own.split_ascii_whitespace().skip(1);
        if words.next() != Some("domain") {
            return None;
        }
        let mut options = Self {
            memory: Bytes(16 << 20),
            shadow: None,
            cpu: None,
            weight: None,
            reserve: None,
            command_line: command_line.unwrap_or(""),
        };
        for word in words {
            if let Err(complaint) = options.set(word) {
                complain(complaint);
            }
        }
        Some(options)
    }

    fn set(&mut self, word: &'a str) -> Result<(), Complaint<'a>> {
        let bad = Complaint::BadValue(word);
        let (name, value) = word.split_once('=').ok_or(Complaint::Unknown(word))?;
        match name {
            "mem" => self.memory = size(value).ok_or(bad)?,
            "shadow" => self.shadow = Some(size(value).ok_or(bad)?),
            "cpu" => self.cpu = Some(decimal(value).and_then(|number| u16::try_from(number).ok()).ok_or(bad)?),
            "weight" => self.weight = Some(weight(value).ok_or(bad)?),
            "reserve" => self.reserve = Some(reservation(value).ok_or(bad)?),
            _ => return Err(Complaint::Unknown(word)),
        }
        Ok(())
    }
}

fn weight(text: &str) -> Option<Weight> {
    let number = u32::try_from(decimal(text)?).ok()?;
    (1..=Weight::MAX).contains(&number).then_some(Weight(number))
}

fn reservation(text: &str) -> Option<Reservation> {
    let (slice, period) = text.split_once('/')?;
    let (slice, period) = (micros(slice)?, micros(period)?);
    (slice <= period).then_some(Reservation { slice, period })
}
