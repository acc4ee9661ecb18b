//! A host channel: one virtio console, both ways, without ever waiting.
//!
//! The device has [`DEPTH`] pages to fill, and as many to send. What the host's side has no room for the device drops (QEMU,
//! hw/char/virtio-console.c), so pages come back soon and nothing here can get stuck; that nothing is dropped is the
//! protocol's affair (`proxenos_rpc`, "Flow").

use crate::dma::{Machine, Page};
use crate::pci::{self, Bus};
use proxenos_guest::abi::event_channel::{BindPirqFlags, EvtchnBindPirq};
use proxenos_guest::abi::{Errno, PAGE_SIZE, Pirq, Port as EventPort};
use proxenos_guest::hypercall::event_channel_op;
use proxenos_guest::{events, println};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::bus::{Command, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_VENDOR_ID};

/// Device numbers of a virtio console: with the legacy interface beside the modern one, and without (virtio 1.2 §5.1, §4.1.2.1).
const DEVICES: [u16; 2] = [0x1003, 0x1043];
/// The queues of the first port (virtio 1.2 §5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Pages of each queue.
const DEPTH: usize = 8;

bitflags::bitflags! {
    /// Features that are taken up: none but the modern interface.
    #[derive(Clone, Copy, Debug)]
    struct Features: u64 {
        const VERSION_1 = 1 << 32;
    }
}

/// A queue with its pages: those that the device has are at the index of their descriptor.
struct Queue {
    ring: VirtQueue<Machine, DEPTH>,
    lent: [Option<(Page, usize)>; DEPTH],
}

impl Queue {
    fn new(transport: &mut PciTransport, number: u16) -> virtio_drivers::Result<Self> {
        let ring = VirtQueue::new(transport, number, false, false)?;
        Ok(Self { ring, lent: [const { None }; DEPTH] })
    }

    /// Lends the device so many bytes of a page to read.
    fn lend_to_read(&mut self, mut page: Page, len: usize) -> virtio_drivers::Result<()> {
        // SAFETY: the page is kept, untouched, until the device gives it back.
        let token = unsafe { self.ring.add(&[&page.bytes()[..len]], &mut []) }?;
        self.lent[usize::from(token)] = Some((page, len));
        Ok(())
    }

    /// Lends the device a page to fill.
    fn lend_to_write(&mut self, mut page: Page) -> virtio_drivers::Result<()> {
        // SAFETY: as above.
        let token = unsafe { self.ring.add(&[], &mut [page.bytes()]) }?;
        self.lent[usize::from(token)] = Some((page, PAGE_SIZE));
        Ok(())
    }

    /// A page that the device has read.
    fn take_read(&mut self) -> Option<Page> {
        let token = self.ring.peek_used()?;
        let (mut page, len) = self.lent.get_mut(usize::from(token))?.take()?;
        // SAFETY: this is what was lent under that token.
        unsafe { self.ring.pop_used(token, &[&page.bytes()[..len]], &mut []) }.ok()?;
        Some(page)
    }

    /// A page that the device has filled, and how far.
    fn take_written(&mut self) -> Option<(Page, usize)> {
        let token = self.ring.peek_used()?;
        let (mut page, _) = self.lent.get_mut(usize::from(token))?.take()?;
        // SAFETY: as above.
        let len = unsafe { self.ring.pop_used(token, &[], &mut [page.bytes()]) }.ok()?;
        Some((page, (len as usize).min(PAGE_SIZE)))
    }
}

/// One channel.
pub struct Port {
    transport: PciTransport,
    receive: Queue,
    transmit: Queue,
    /// Pages for what is to be sent.
    spare: alloc::vec::Vec<Page>,
}

/// Why there is no channel at a device.
#[derive(Debug)]
#[expect(dead_code, reason = "shown by their Debug")]
pub enum Fault {
    /// The bus or the interrupt.
    Hypervisor(Errno),
    /// The device.
    Virtio(virtio_drivers::Error),
    /// Its configuration space.
    Pci(virtio_drivers::transport::pci::VirtioPciError),
    /// No memory.
    OutOfMemory,
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Hypervisor(errno)
    }
}

impl From<virtio_drivers::Error> for Fault {
    fn from(error: virtio_drivers::Error) -> Self {
        Self::Virtio(error)
    }
}

/// Every host channel, in the order of the devices' addresses, with a handler for their interrupts.
pub fn all(on_interrupt: events::Handler) -> alloc::vec::Vec<Port> {
    let mut ports = alloc::vec::Vec::new();
    for at in pci::functions() {
        let id = virtio_drivers::transport::pci::bus::ConfigurationAccess::read_word(&Bus, at, 0);
        if (id as u16, DEVICES.contains(&((id >> 16) as u16))) != (VIRTIO_VENDOR_ID, true) {
            continue;
        }
        match Port::new(at, on_interrupt) {
            Ok(port) => ports.push(port),
            Err(fault) => println!("control: the virtio console at {at} is of no use: {fault:?}"),
        }
    }
    ports
}

/// Has a line's interrupts handled. Devices may share one: binding it again gives the same port.
fn handle(line: Pirq, handler: events::Handler) -> Result<(), Errno> {
    let bind = EvtchnBindPirq { pirq: line, flags: BindPirqFlags::WILL_SHARE.bits(), port: EventPort(0) };
    let port = event_channel_op(bind)?.port;
    events::set_handler(port, handler);
    events::unmask(port);
    Ok(())
}

impl Port {
    fn new(at: DeviceFunction, on_interrupt: events::Handler) -> Result<Self, Fault> {
        let line = pci::initialise(at)?;
        let mut root = PciRoot::new(Bus);
        let (_, command) = root.get_status_command(at);
        root.set_command(at, command | Command::MEMORY_SPACE | Command::BUS_MASTER);
        let mut transport = PciTransport::new::<Machine, _>(&mut root, at).map_err(Fault::Pci)?;
        transport.begin_init(Features::VERSION_1);
        let mut receive = Queue::new(&mut transport, RECEIVE)?;
        let transmit = Queue::new(&mut transport, TRANSMIT)?;
        handle(line, on_interrupt)?;
        let mut spare = alloc::vec::Vec::with_capacity(DEPTH);
        for _ in 0..DEPTH {
            receive.lend_to_write(Page::new().ok_or(Fault::OutOfMemory)?)?;
            spare.push(Page::new().ok_or(Fault::OutOfMemory)?);
        }
        transport.finish_init();
        transport.notify(RECEIVE);
        Ok(Self { transport, receive, transmit, spare })
    }

    /// Answers the device's interrupt, if it has one.
    pub fn acknowledge(&mut self) {
        let _ = self.transport.ack_interrupt();
    }

    /// Hands over one page's worth of what has come, if any has.
    pub fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool {
        let Some((mut page, len)) = self.receive.take_written() else { return false };
        take(&page.bytes()[..len]);
        // There is room: the page came from there.
        if self.receive.lend_to_write(page).is_ok() {
            self.transport.notify(RECEIVE);
        }
        true
    }

    /// Whether something could be sent now.
    pub fn has_room(&mut self) -> bool {
        while let Some(page) = self.transmit.take_read() {
            self.spare.push(page);
        }
        !self.spare.is_empty()
    }

    /// Sends bytes, up to a page of them; how many.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() || !self.has_room() {
            return 0;
        }
        let Some(mut page) = self.spare.pop() else { return 0 };
        let len = bytes.len().min(PAGE_SIZE);
        page.bytes()[..len].copy_from_slice(&bytes[..len]);
        if self.transmit.lend_to_read(page, len).is_err() {
            return 0;
        }
        self.transport.notify(TRANSMIT);
        len
    }
}
