//! Event channels: binding, masking, waiting, and the dispatch of upcalls to the ports' handlers.
//!
//! An upcall is entered with upcalls masked, and its entry point unmasks them when all is done. Handlers therefore
//! never nest. A port that nobody handles is masked when it first fires.

use crate::arch::{Arch, event_callback, failsafe_callback};
use crate::{hypercall, shared_info};
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};
use proxenos_abi::event_channel::{
    Channel, EvtchnBindInterdomain, EvtchnBindVirq, EvtchnClose, EvtchnSend, EvtchnStatus, NR_EVENT_CHANNELS,
};
use proxenos_abi::{DomId, Errno, GuestArch, Port, Virq};

/// A port's handler. Runs with upcalls masked.
pub type Handler = fn(Port);

/// Addresses of the handlers, 0 for none.
static HANDLERS: [AtomicUsize; NR_EVENT_CHANNELS] = [const { AtomicUsize::new(0) }; NR_EVENT_CHANNELS];
static UPCALLS: AtomicUsize = AtomicUsize::new(0);
static UNHANDLED: AtomicUsize = AtomicUsize::new(0);

/// Masks every port and installs the callbacks. Upcalls stay masked until [`unmask_upcalls`].
pub fn install() -> Result<(), Errno> {
    for index in 0..NR_EVENT_CHANNELS / 32 {
        shared_info::mask_word(index).store(u32::MAX, Ordering::Relaxed);
    }
    let cs = Arch::FLAT_GUESTOS_CS;
    // SAFETY: both are entry points made for it.
    unsafe { hypercall::set_callbacks((cs, event_callback()), (cs, failsafe_callback())) }
}

/// Called by the event callback, with upcalls masked.
pub(crate) extern "C" fn upcall() {
    UPCALLS.store(UPCALLS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    dispatch_pending();
}

/// Runs the handlers of all pending, unmasked ports. Upcalls must be masked.
fn dispatch_pending() {
    // The flag is cleared before the work is looked for: what comes later sets it again.
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
    let mut words = shared_info::pending_selector().swap(0, Ordering::SeqCst);
    while words != 0 {
        let index = words.trailing_zeros() as usize;
        words &= words - 1;
        loop {
            let mask = shared_info::mask_word(index).load(Ordering::Relaxed);
            let ready = shared_info::pending_word(index).load(Ordering::Relaxed) & !mask;
            if ready == 0 {
                break;
            }
            let bit = ready.trailing_zeros();
            shared_info::pending_word(index).fetch_and(!(1 << bit), Ordering::SeqCst);
            handle(Port(index as u32 * 32 + bit));
        }
    }
}

fn handle(port: Port) {
    match HANDLERS[port.raw() as usize].load(Ordering::Acquire) {
        0 => {
            mask(port);
            UNHANDLED.store(UNHANDLED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        handler => {
            // SAFETY: only `set_handler` stores anything but 0, and it stores a `Handler`.
            let handler: Handler = unsafe { core::mem::transmute(handler) };
            handler(port);
        }
    }
}

/// How many upcalls there have been. Wraps.
pub fn upcall_count() -> usize {
    UPCALLS.load(Ordering::Relaxed)
}

/// How many events had no handler.
pub fn unhandled_count() -> usize {
    UNHANDLED.load(Ordering::Relaxed)
}

/// Registers the function for a port, in place of the one before.
pub fn set_handler(port: Port, handler: Handler) {
    HANDLERS[port.raw() as usize].store(handler as usize, Ordering::Release);
}

/// Masks upcalls. Returns whether they were unmasked.
pub fn mask_upcalls() -> bool {
    let was = shared_info::upcall_mask().swap(1, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    was == 0
}

/// Unmasks upcalls, and takes the one that is due.
pub fn unmask_upcalls() {
    compiler_fence(Ordering::SeqCst);
    shared_info::upcall_mask().store(0, Ordering::SeqCst);
    if shared_info::upcall_pending().load(Ordering::SeqCst) != 0 {
        enter_hypervisor();
    }
}

/// Runs a function with upcalls masked.
pub fn without_upcalls<R>(run: impl FnOnce() -> R) -> R {
    let were_unmasked = mask_upcalls();
    let result = run();
    if were_unmasked {
        unmask_upcalls();
    }
    result
}

/// Gives the hypervisor the chance to deliver what is pending: it looks only when it is entered.
pub fn enter_hypervisor() {
    let _ = hypercall::xen_version();
}

/// Masks a port.
pub fn mask(port: Port) {
    let (index, bit) = shared_info::bit_of(port);
    shared_info::mask_word(index).fetch_or(bit, Ordering::SeqCst);
}

/// Unmasks a port. An event that came meanwhile is made due again: the hypervisor acts on fresh ones only.
pub fn unmask(port: Port) {
    let (index, bit) = shared_info::bit_of(port);
    shared_info::mask_word(index).fetch_and(!bit, Ordering::SeqCst);
    if shared_info::pending_word(index).load(Ordering::SeqCst) & bit != 0 {
        shared_info::pending_selector().fetch_or(1 << index, Ordering::SeqCst);
        shared_info::upcall_pending().store(1, Ordering::SeqCst);
        if shared_info::upcall_mask().load(Ordering::SeqCst) == 0 {
            enter_hypervisor();
        }
    }
}

/// Clears a port's pending bit. Returns whether it was set.
pub fn clear(port: Port) -> bool {
    let (index, bit) = shared_info::bit_of(port);
    shared_info::pending_word(index).fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

/// Binds a virtual interrupt to a fresh port.
pub fn bind_virq(virq: Virq) -> Result<Port, Errno> {
    hypercall::event_channel_op(EvtchnBindVirq { virq: virq.raw(), port: Port(0) }).map(|bound| bound.port)
}

/// Binds a virtual interrupt to a fresh port with this handler, unmasked.
pub fn handle_virq(virq: Virq, handler: Handler) -> Result<Port, Errno> {
    let port = bind_virq(virq)?;
    set_handler(port, handler);
    unmask(port);
    Ok(port)
}

/// Connects two fresh ports of this domain to each other.
pub fn bind_loopback() -> Result<(Port, Port), Errno> {
    let request = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: DomId::SELF, port1: Port(0), port2: Port(0) };
    hypercall::event_channel_op(request).map(|bound| (bound.port1, bound.port2))
}

/// Connects fresh ports of two domains; both but ourselves are a privileged domain's to connect. Returns both ports.
pub fn bind_interdomain(one: DomId, other: DomId) -> Result<(Port, Port), Errno> {
    let request = EvtchnBindInterdomain { dom1: one, dom2: other, port1: Port(0), port2: Port(0) };
    hypercall::event_channel_op(request).map(|bound| (bound.port1, bound.port2))
}

/// Sends an event to the other end of a port's channel.
pub fn send(port: Port) -> Result<(), Errno> {
    hypercall::event_channel_send(EvtchnSend { local_port: port })
}

/// Closes a port.
pub fn close(port: Port) -> Result<(), Errno> {
    hypercall::event_channel_op(EvtchnClose { dom: DomId::SELF, pad: 0, port }).map(drop)
}

/// The state of one of our ports.
///
/// # Panics
/// If the hypervisor names a state that the interface does not.
pub fn status(port: Port) -> Result<Channel, Errno> {
    let request = EvtchnStatus { dom: DomId::SELF, port, ..EvtchnStatus::default() };
    let status = hypercall::event_channel_op(request)?;
    Ok(status.channel().expect("a state of the interface"))
}

/// Unmasks upcalls and waits until one has been delivered (or is due).
pub fn wait() {
    hypercall::sched_block().expect("a guest may block");
}

/// Waits until a condition holds that a handler makes true.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    loop {
        // Masked between the look and the call, lest the event slip in between; blocking unmasks.
        mask_upcalls();
        if condition() {
            unmask_upcalls();
            return;
        }
        wait();
    }
}
