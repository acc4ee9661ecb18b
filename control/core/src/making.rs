//! Domains that are being built, a piece a turn, so that nobody else waits for long.
//!
//! A build is for a domain that is known already ([`Life::Building`]): a new one, which is forgotten if it fails or
//! when nobody waits for it any more, or one that is started again, whose end it is if it fails. Calls that wait for it
//! ([`Wait::Creation`]) hear how far it is, and what came of it.

use crate::channel::Wait;
use crate::domain::{Domain, Life};
use crate::host::{Begun, Host, Order, Step};
use crate::server::{Serial, Server};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use proxenos_rpc::{Cause, DomainId, Event, Exit, Failure, MAX_PROGRESS, Reply, Stage, Start, Subject};

/// A domain that is being built.
pub(crate) struct Making<H: Host> {
    pub(crate) serial: Serial,
    build: H::Build,
    /// What was told of its progress last, and how often.
    told: (Option<(Stage, u64)>, u32),
}

/// Each stage is told in so many parts: no more than a call may have.
const PARTS: u64 = 8;

/// What a domain is made of.
fn order<L>(domain: &Domain<L>) -> Order<'_> {
    let config = &domain.config;
    Order {
        kernel: domain.kernel.bytes(),
        ramdisk: domain.ramdisk.as_ref().map_or(&[], |ramdisk| ramdisk.bytes()),
        memory: config.memory,
        memory_limit: config.memory_limit.unwrap_or(config.memory).max(config.memory),
        cpu: config.cpu,
        command_line: config.cmdline.as_bytes(),
    }
}

impl<H: Host> Server<H> {
    /// Begins to build a domain that is known. `before` is how it ended, if it is to be started again.
    pub(crate) fn begin_making(&mut self, serial: Serial, before: Option<Exit>) -> Result<(), Failure> {
        let gone = || Failure::new(Cause::NoSuchDomain, "it is gone");
        let domain = self.domains.get_mut(&serial).ok_or_else(gone)?;
        let Begun { id, arch, build } = self.host.begin_build(&order(domain))?;
        (domain.id, domain.arch, domain.life) = (id, arch, Life::Building(before));
        self.makings.push(Making { serial, build, told: (None, 0) });
        Ok(())
    }

    /// Does a piece of the domain that has waited longest for one.
    pub(crate) fn make(&mut self) {
        self.drop_unwanted();
        if self.makings.is_empty() {
            return;
        }
        let mut making = self.makings.remove(0);
        let serial = making.serial;
        let Some(domain) = self.domains.get(&serial) else { return };
        match self.host.go_on(&mut making.build, &order(domain)) {
            Ok(Step::More { stage, done, total }) => {
                self.tell_progress(&mut making, stage, done, total);
                self.makings.push(making);
            }
            Ok(Step::Built(link)) => {
                let made = self.made(serial, link);
                // Whatever is the matter with it: its build is done, and it is another's to end.
                drop(making);
                self.finish_making(serial, made);
            }
            Err(failure) => {
                drop(making);
                self.finish_making(serial, Err(failure));
            }
        }
    }

    /// A new domain for which nobody waits any more is given up.
    fn drop_unwanted(&mut self) {
        let is_waited_for = |serial: Serial| {
            let mut open = self.channels.iter().flat_map(|channel| &channel.open);
            open.any(|call| matches!(call.wait, Wait::Creation(whose) if whose == serial))
        };
        let is_new = |serial| self.domains.get(&serial).is_none_or(|domain| domain.life == Life::Building(None));
        let unwanted: Vec<_> = self.makings.iter().map(|making| making.serial).collect();
        let unwanted: Vec<_> =
            unwanted.into_iter().filter(|&serial| is_new(serial) && !is_waited_for(serial)).collect();
        for serial in unwanted {
            self.makings.retain(|making| making.serial != serial);
            self.domains.remove(&serial);
        }
    }

    fn tell_progress(&mut self, making: &mut Making<H>, stage: Stage, done: u64, total: u64) {
        let now = Some((stage, (u128::from(done) * u128::from(PARTS)).checked_div(total.into()).unwrap_or(0) as u64));
        let (last, count) = &mut making.told;
        if now == *last || *count == MAX_PROGRESS {
            return;
        }
        *last = now;
        *count += 1;
        for channel in &mut self.channels {
            channel.tell(
                |wait| matches!(wait, Wait::Creation(whose) if *whose == making.serial),
                &Event::Progress { stage, done, total },
            );
        }
    }

    /// Takes over a domain that was built: it is scheduled and let run as it was asked for.
    fn made(&mut self, serial: Serial, link: H::Link) -> Result<(), Failure> {
        let gone = || Failure::new(Cause::NoSuchDomain, "it is gone");
        let now = self.host.now();
        let domain = self.domains.get_mut(&serial).ok_or_else(gone)?;
        let is_again = matches!(domain.life, Life::Building(Some(_)));
        let (id, config) = (domain.id, &domain.config);
        let scheduled = config.sched.map_or(Ok(()), |sched| self.host.set_domain_sched(id, sched));
        let runs = is_again || config.start == Start::Running;
        let started = scheduled.and_then(|()| if runs { self.host.unpause(id) } else { Ok(()) });
        if let Err(failure) = started {
            drop(link);
            // What is not as it was asked for is not left lying about.
            let _ = self.host.destroy(id);
            return Err(failure);
        }
        domain.begin(link, now);
        if is_again {
            domain.restarts += 1;
            for channel in &mut self.channels {
                channel.tell(
                    |wait| matches!(wait, Wait::Console(viewer) if viewer.domain == serial),
                    &Event::Restarted(DomainId(id.0)),
                );
            }
        }
        // What it did before it was known here is to be looked at.
        self.ring(serial);
        Ok(())
    }

    /// A domain was built, or cannot be: whoever waits is told, and what was not made is forgotten, or has ended.
    pub(crate) fn finish_making(&mut self, serial: Serial, made: Result<(), Failure>) {
        let reply = made.and_then(|()| {
            let gone = || Failure::new(Cause::NoSuchDomain, "it is gone");
            let id = self.domains.get(&serial).ok_or_else(gone)?.id;
            Ok(Reply::Domain(Box::new(self.describe(&Subject::Id(DomainId(id.0)))?)))
        });
        if let Err(failure) = &reply {
            self.unmade(serial, failure);
        }
        for channel in &mut self.channels {
            channel.close(|call| match &call.wait {
                Wait::Creation(whose) if *whose == serial => Some(reply.clone()),
                _ => None,
            });
        }
    }

    /// What was not made is forgotten, or has ended.
    pub(crate) fn unmade(&mut self, serial: Serial, failure: &Failure) {
        let Some(domain) = self.domains.get_mut(&serial) else { return };
        match domain.life {
            Life::Building(Some(_)) | Life::Restarting(..) => {
                domain.console.push(format!("\r\n[proxenos: not started again: {failure}]\r\n").as_bytes());
                self.stay_down(serial);
            }
            Life::Building(None) => drop(self.domains.remove(&serial)),
            Life::Live | Life::Kept(_) | Life::Ended(_) => {}
        }
    }
}
