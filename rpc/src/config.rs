//! What a domain is to be, and the images it is made from.

use core::fmt;
use serde::{Deserialize, Serialize};

use crate::sched::DomainSched;
use crate::{Kib, MAX_CMDLINE, MAX_TEXT, Name, Text};

/// When a domain that has shut down is started again, from its images and with the name it had. (A crash is
/// [`OnCrash`]'s affair.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Never; a reboot is an end too.
    Never,
    /// When it says reboot.
    #[default]
    OnReboot,
    /// Whenever it ends, but for destruction.
    Always,
}

/// What happens to a domain that crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnCrash {
    /// It is destroyed.
    Destroy,
    /// It stays, frozen, to be dumped.
    #[default]
    Keep,
    /// It is destroyed and started again.
    Restart,
}

/// Whether a new domain begins to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// At once.
    #[default]
    Running,
    /// When it is unpaused.
    Paused,
}

/// A domain to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its name, which no other may have.
    pub name: Name,
    /// Its memory.
    pub memory: Kib,
    /// The memory that it may grow to; without, as much as it has.
    pub memory_limit: Option<Kib>,
    /// The CPU that it stays on; without, the hypervisor chooses.
    pub cpu: Option<u32>,
    /// Its scheduling; without, what a new domain has.
    pub sched: Option<DomainSched>,
    /// Its kernel's command line.
    pub cmdline: Text<MAX_CMDLINE>,
    /// When it is started again.
    pub restart: Restart,
    /// What happens when it crashes.
    pub on_crash: OnCrash,
    /// Whether it begins to run.
    pub start: Start,
    /// What its kernel is called, to be shown.
    pub image: Text<MAX_TEXT>,
}

/// One of a domain's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// An ELF file, gzipped or not.
    Kernel,
    /// Passed to the kernel as it is.
    Ramdisk,
}

/// SHA-256 of an image, made by the client. The control domain takes it as a name only: for an image with a digest
/// that it still has, it asks for no upload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// CRC-32 (IEEE) of a whole image, checked when the last chunk is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checksum(pub u32);

impl Checksum {
    /// Of no bytes.
    pub const EMPTY: Self = Self(0);

    /// Of the bytes so far, and then these.
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(bytes);
        Self(hasher.finalize())
    }

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::EMPTY.and(bytes)
    }
}

/// An image that is to be uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its bytes; at most [`MAX_IMAGE`](crate::MAX_IMAGE).
    pub len: u64,
    /// Their checksum.
    pub checksum: Checksum,
    /// Their name.
    pub digest: Digest,
}

/// A creation that waits for its images. The channel's own: a new [`Hello`](crate::Hello) ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(pub u32);
