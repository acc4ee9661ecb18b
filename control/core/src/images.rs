//! Kernels and ramdisks: uploads under way, and those that are there.
//!
//! An image is kept as long as a domain is made from it, or nobody needs its memory. The digest that the client gave it
//! is its name; what arrives is checked against length and checksum. A kernel is kept unpacked. All together, those
//! that arrive and those that are there, take no more bytes than they were given.

use crate::gzip;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use proxenos_rpc::{Cause, Checksum, Config, Digest, Failure, Image, MAX_IMAGE, Part, UploadId};

/// Creations that wait for their images, on all channels.
const MOST_UPLOADS: usize = 4;
/// Images that no domain uses, at most.
const MOST_IDLE: usize = 8;
/// How large an unpacked kernel may be.
const MOST_UNPACKED: usize = 256 << 20;

/// An image that is there.
pub(crate) struct Stored {
    name: (Digest, Part),
    bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// An image on its way.
struct Arriving {
    image: Image,
    bytes: Vec<u8>,
    checksum: Checksum,
}

/// An image of a creation.
enum Slot {
    Arriving(Arriving),
    There(Rc<Stored>),
}

/// A creation.
struct Upload {
    channel: usize,
    id: UploadId,
    config: Config,
    kernel: Slot,
    ramdisk: Option<Slot>,
}

/// A creation whose images are all there.
pub(crate) struct Complete {
    pub(crate) config: Config,
    pub(crate) kernel: Rc<Stored>,
    pub(crate) ramdisk: Option<Rc<Stored>>,
}

/// All images and creations.
pub(crate) struct Images {
    /// Bytes that they take at most.
    limit: usize,
    /// The last used ones last.
    stored: Vec<Rc<Stored>>,
    uploads: Vec<Upload>,
    last_id: u32,
}

fn failure(cause: Cause, message: &str) -> Failure {
    Failure::new(cause, message)
}

impl Images {
    /// None yet, of so many bytes at most.
    pub(crate) const fn new(limit: usize) -> Self {
        Self { limit, stored: Vec::new(), uploads: Vec::new(), last_id: 0 }
    }

    /// Bytes that are not taken.
    fn room(&self) -> usize {
        let arriving = |slot: &Slot| match slot {
            Slot::Arriving(arriving) => arriving.image.len as usize,
            Slot::There(_) => 0,
        };
        let both = |upload: &Upload| arriving(&upload.kernel) + upload.ramdisk.as_ref().map_or(0, arriving);
        let uploads: usize = self.uploads.iter().map(both).sum();
        let stored: usize = self.stored.iter().map(|stored| stored.bytes.len()).sum();
        self.limit.saturating_sub(uploads + stored)
    }

    /// Makes room for so many bytes more, at the cost of images that nothing uses.
    fn make_room(&mut self, len: usize) -> Result<(), Failure> {
        if len > self.room() {
            self.forget_idle(0);
        }
        if len > self.room() {
            let (len, room) = (len.div_ceil(1024), self.room() / 1024);
            let message =
                format!("{len} KiB of images do not fit into the {room} KiB that the control domain has left");
            return Err(failure(Cause::OutOfMemory, &message));
        }
        Ok(())
    }

    /// Whether a creation has a name.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.uploads.iter().any(|upload| upload.config.name.as_str() == name)
    }

    /// Begins a creation: its number, and which images are to be uploaded.
    pub(crate) fn begin(
        &mut self,
        channel: usize,
        config: Config,
        kernel: &Image,
        ramdisk: Option<&Image>,
    ) -> Result<(UploadId, bool, bool), Failure> {
        if self.uploads.len() >= MOST_UPLOADS {
            return Err(failure(Cause::Busy, "too many images are being uploaded; try again when one is done"));
        }
        let kernel = self.slot(kernel, Part::Kernel)?;
        let ramdisk = ramdisk.map(|image| self.slot(image, Part::Ramdisk)).transpose()?;
        let wants = |slot: &Slot| matches!(slot, Slot::Arriving(_));
        let wanted = (wants(&kernel), ramdisk.as_ref().is_some_and(wants));
        self.last_id = self.last_id.wrapping_add(1);
        let id = UploadId(self.last_id);
        self.uploads.push(Upload { channel, id, config, kernel, ramdisk });
        Ok((id, wanted.0, wanted.1))
    }

    /// Where an image is: here, or to be uploaded.
    fn slot(&mut self, image: &Image, part: Part) -> Result<Slot, Failure> {
        if let Some(at) = self.stored.iter().position(|stored| stored.name == (image.digest, part)) {
            let stored = self.stored.remove(at);
            self.stored.push(stored.clone());
            return Ok(Slot::There(stored));
        }
        if image.len == 0 || image.len > MAX_IMAGE {
            let message = format!("an image of {} bytes: it must be 1 byte to {} MiB", image.len, MAX_IMAGE >> 20);
            return Err(failure(Cause::Invalid, &message));
        }
        self.make_room(image.len as usize)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(image.len as usize).map_err(|_| {
            let message = format!("the control domain has not {} KiB left for an image", image.len.div_ceil(1024));
            failure(Cause::OutOfMemory, &message)
        })?;
        Ok(Slot::Arriving(Arriving { image: *image, bytes, checksum: Checksum::EMPTY }))
    }

    /// Takes a chunk.
    pub(crate) fn take(
        &mut self,
        channel: usize,
        id: UploadId,
        part: Part,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let at = self.find(channel, id)?;
        let upload = &mut self.uploads[at];
        let slot = match part {
            Part::Kernel => Some(&mut upload.kernel),
            Part::Ramdisk => upload.ramdisk.as_mut(),
        };
        let Some(Slot::Arriving(arriving)) = slot else {
            return Err(failure(Cause::BadUpload, "this image is not wanted"));
        };
        let have = arriving.bytes.len() as u64;
        if offset != have || bytes.len() as u64 > arriving.image.len - have {
            let message =
                format!("a chunk of {} bytes at {offset}, but {have} of {} are there", bytes.len(), arriving.image.len);
            return Err(failure(Cause::BadUpload, &message));
        }
        arriving.bytes.extend_from_slice(bytes);
        arriving.checksum = arriving.checksum.and(bytes);
        if arriving.bytes.len() as u64 == arriving.image.len {
            if arriving.checksum != arriving.image.checksum {
                // It begins anew.
                arriving.bytes.clear();
                arriving.checksum = Checksum::EMPTY;
                return Err(failure(
                    Cause::BadUpload,
                    "the image that arrived has another checksum than was announced",
                ));
            }
            let arrived = core::mem::take(&mut arriving.bytes);
            arriving.checksum = Checksum::EMPTY;
            let digest = arriving.image.digest;
            let bytes = if part == Part::Kernel && gzip::is_gzip(&arrived) {
                let useless = |error| failure(Cause::BadImage, &format!("the kernel is of no use: {error}"));
                self.make_room(gzip::unpacked_len(&arrived).map_err(useless)?)?;
                gzip::unpack(&arrived, MOST_UNPACKED).map_err(useless)?
            } else {
                arrived
            };
            let stored = Rc::new(Stored { name: (digest, part), bytes });
            let slot = Slot::There(stored.clone());
            let upload = &mut self.uploads[at];
            match part {
                Part::Kernel => upload.kernel = slot,
                Part::Ramdisk => upload.ramdisk = Some(slot),
            }
            self.stored.push(stored);
            self.forget_idle(MOST_IDLE);
        }
        Ok(())
    }

    /// Ends a creation, whose images are all there.
    pub(crate) fn finish(&mut self, channel: usize, id: UploadId) -> Result<Complete, Failure> {
        let at = self.find(channel, id)?;
        let upload = self.uploads.remove(at);
        match (upload.kernel, upload.ramdisk) {
            (Slot::There(kernel), None) => Ok(Complete { config: upload.config, kernel, ramdisk: None }),
            (Slot::There(kernel), Some(Slot::There(ramdisk))) => {
                Ok(Complete { config: upload.config, kernel, ramdisk: Some(ramdisk) })
            }
            _ => Err(failure(Cause::BadUpload, "not all of the images have arrived")),
        }
    }

    /// Gives a creation up.
    pub(crate) fn abort(&mut self, channel: usize, id: UploadId) -> Result<(), Failure> {
        self.find(channel, id).map(|at| drop(self.uploads.remove(at)))
    }

    /// Gives all creations of a channel up.
    pub(crate) fn abort_all(&mut self, channel: usize) {
        self.uploads.retain(|upload| upload.channel != channel);
    }

    fn find(&self, channel: usize, id: UploadId) -> Result<usize, Failure> {
        let found = self.uploads.iter().position(|upload| (upload.channel, upload.id) == (channel, id));
        found.ok_or_else(|| failure(Cause::Invalid, "there is no such creation under way"))
    }

    /// Forgets images that nothing uses, the longest unused first, until at most so many are left.
    fn forget_idle(&mut self, most: usize) {
        let is_idle = |stored: &Rc<Stored>| Rc::strong_count(stored) == 1;
        let mut excess = self.stored.iter().filter(|stored| is_idle(stored)).count().saturating_sub(most);
        self.stored.retain(|stored| {
            let goes = excess > 0 && is_idle(stored);
            excess -= usize::from(goes);
            !goes
        });
    }
}
