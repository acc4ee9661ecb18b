//! A segment that is taken away under the code that runs with it.

use crate::tables::Tables;

#[cfg(target_arch = "x86")]
pub fn run(tables: &Tables) {
    x86_32::own_code_segment(tables);
    x86_32::own_data_segments(tables);
}

#[cfg(target_arch = "x86_64")]
pub fn run(_: &Tables) {
    x86_64::syscall_at_the_end();
}

#[cfg(target_arch = "x86")]
mod x86_32 {
    use super::Tables;
    use crate::entries;
    use crate::tables::{CODE, GOOD_CODE, GOOD_DATA, GRANULAR, RING, SIZE, flat};
    use core::arch::asm;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use proxenos_guest::abi::{GuestArch, Hypercall, Selector};
    use proxenos_guest::test::section;
    use proxenos_guest::{Arch, check_eq};

    const CODE_SLOT: u16 = 50;
    const DATA_SLOT: u16 = 51;
    /// Nested task: long mode's `iret` refuses to run with it, but loads it.
    const NT: usize = 1 << 14;

    /// Code runs in a segment of its own and has the hypervisor change its descriptor: the return from that very call
    /// cannot be carried out. Tells what the call returned, where it was to return to, and in which segment it goes on.
    #[inline(never)]
    fn replace_own_code(tables: &Tables, descriptor: u64, flags: usize) -> (usize, usize, usize, usize) {
        static FLAGS: AtomicUsize = AtomicUsize::new(0);
        FLAGS.store(0x202 | flags, Ordering::Relaxed);
        tables.set(CODE_SLOT, GOOD_CODE);
        let (result, behind, cs, flags_after): (usize, usize, usize, usize);
        // SAFETY: the failsafe callback puts the flat segment in place of ours. NT is cleared before anything could
        // fault.
        unsafe {
            asm!(
                "push {selector}",
                "lea edi, [5f]",
                "push edi",
                "retf",
                "5: lea edi, [6f]",
                "push dword ptr [{flags}]",
                "popfd",
                "int 0x82",
                "6: pushfd",
                "pop ecx",
                "push 2",
                "popfd",
                "mov edx, cs",
                selector = const Selector::gdt(CODE_SLOT, RING).raw(),
                flags = sym FLAGS,
                inout("eax") Hypercall::UpdateDescriptor.raw() as usize => result,
                in("ebx") tables.address(CODE_SLOT).raw() as usize,
                inout("ecx") descriptor as u32 as usize => flags_after,
                inout("edx") (descriptor >> 32) as usize => cs,
                out("edi") behind,
            );
        }
        (result, behind, cs, flags_after)
    }

    pub fn own_code_segment(tables: &Tables) {
        section("a code segment that is taken away under the code in it");
        for (descriptor, what) in [
            (0, "cleared"),
            (flat(CODE, RING, GRANULAR | SIZE), "made not present"),
            (GOOD_DATA, "made data"),
            (flat(0x80 | CODE, 3, GRANULAR | SIZE), "given to ring 3"),
        ] {
            for flags in [0, NT] {
                let failsafes = entries::count();
                let (result, behind, cs, flags_after) = replace_own_code(tables, descriptor, flags);
                check_eq!(result, 0, "{what}: the call succeeded, and its result is kept");
                check_eq!(entries::count() - failsafes, 1, "{what}: failsafe callbacks");
                check_eq!(cs, usize::from(Arch::FLAT_GUESTOS_CS.raw()), "{what}: the callback's choice");
                check_eq!(flags_after & NT, flags, "{what}: flags that are the code's own");
                let found = entries::found();
                check_eq!(found.words[4], behind, "{what}: eip behind the call");
                check_eq!(found.words[5] & 0xffff, usize::from(Selector::gdt(CODE_SLOT, RING).raw()), "{what}: cs");
                check_eq!(found.words[6] & (NT | 0x200), flags | 0x200, "{what}: flags in the frame");
                check_eq!(found.flags & NT, 0, "{what}: flags in the callback");
                let flat_data = usize::from(Arch::FLAT_GUESTOS_DS.raw());
                check_eq!(&found.words[..2], &[flat_data; 2][..], "{what}: ds, es");
            }
        }
        // Changed into itself, nothing happens.
        let failsafes = entries::count();
        let (result, _, cs, _) = replace_own_code(tables, GOOD_CODE, 0);
        let own = usize::from(Selector::gdt(CODE_SLOT, RING).raw());
        // SAFETY: back to the flat segment, where the compiler's code belongs.
        unsafe {
            asm!(
                "push {cs}",
                "lea {scratch}, [5f]",
                "push {scratch}",
                "retf",
                "5:",
                cs = const Arch::FLAT_GUESTOS_CS.raw(),
                scratch = out(reg) _,
            );
        }
        check_eq!((result, cs), (0, own), "not changed");
        check_eq!(entries::count() - failsafes, 0, "not changed: failsafe callbacks");
    }

    /// The data registers stay as they are: the CPU keeps what it has loaded, and nobody loads them again.
    pub fn own_data_segments(tables: &Tables) {
        section("data segments that are taken away");
        tables.set(DATA_SLOT, GOOD_DATA);
        let selector = Selector::gdt(DATA_SLOT, RING).raw();
        let failsafes = entries::count();
        let (result, es, fs, read): (usize, usize, usize, usize);
        let word = 0x600d_da7ausize;
        // SAFETY: es is put back; the read goes through a flat segment.
        unsafe {
            asm!(
                "push {selector}",
                ".byte 0x07",       // pop es
                "push {selector}",
                ".byte 0x0f, 0xa1", // pop fs
                "int 0x82",
                "mov edi, dword ptr es:[edi]",
                "mov ecx, es",
                "mov edx, fs",
                "mov ebx, ds",
                "mov es, ebx",
                "xor ebx, ebx",
                "mov fs, ebx",
                selector = const Selector::gdt(DATA_SLOT, RING).raw(),
                inout("eax") Hypercall::UpdateDescriptor.raw() as usize => result,
                inout("ebx") tables.address(DATA_SLOT).raw() as usize => _,
                inout("ecx") 0usize => es,
                inout("edx") 0usize => fs,
                inout("edi") &raw const word => read,
            );
        }
        check_eq!(result, 0);
        check_eq!((es, fs), (usize::from(selector), usize::from(selector)), "the selectors stay");
        check_eq!(read, word, "and what was loaded by them");
        check_eq!(entries::count() - failsafes, 0, "failsafe callbacks");
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use crate::entries;
    use core::arch::asm;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use proxenos_guest::abi::hypercall::XEN_VERSION;
    use proxenos_guest::abi::mmu::UpdateVaFlags;
    use proxenos_guest::abi::{GuestVirt, Hypercall};
    use proxenos_guest::check_eq;
    use proxenos_guest::memory::{self, tables};
    use proxenos_guest::pte::{Pte, PteFlags};
    use proxenos_guest::test::section;
    use proxenos_guest::traps::{self, Outcome, vector};

    /// The end of the lower half: the first address that is none.
    const END: u64 = 1 << 47;
    /// Where to go on after a fault there.
    static RECOVERY: AtomicUsize = AtomicUsize::new(0);

    /// A `syscall` as the last instruction of the lower half returns to an address that cannot be: a `sysret` would
    /// fault in ring 0 with the guest's stack pointer. `iret` to it faults either before it leaves ring 0 (Intel),
    /// which is the failsafe callback's business, or behind it, as a #GP of the guest's.
    pub fn syscall_at_the_end() {
        section("a return to an address that is not canonical");
        let page = memory::alloc_frame().expect("padding");
        let last = GuestVirt(END - 4096);
        // SAFETY: a fresh frame.
        unsafe {
            page.words().cast::<u8>().add(4094).write_volatile(0x0f);
            page.words().cast::<u8>().add(4095).write_volatile(0x05);
        }
        check_eq!(tables::ensure_l1(last), Ok(()), "tables for the last page");
        // SAFETY: nothing is mapped there.
        let mapped = unsafe {
            memory::update_va_mapping(last, Pte::new(page.mfn(), PteFlags::KERNEL_RO), UpdateVaFlags::INVLPG)
        };
        check_eq!(mapped, Ok(()), "the last page of the lower half is a guest's");
        traps::set_handler(vector::GENERAL_PROTECTION, |frame| {
            if frame.ip() != GuestVirt(END) {
                return Outcome::NotMine;
            }
            frame.set_ip(GuestVirt(RECOVERY.load(Ordering::Relaxed) as u64));
            Outcome::Handled
        });
        let (failsafes, count) = (entries::count(), traps::count());
        let result: usize;
        // SAFETY: the call comes back by one of two ways, to the label. The `call` leaves its return address.
        unsafe {
            asm!(
                "lea rcx, [rip + 6f]",
                "mov qword ptr [{recovery}], rcx",
                "mov qword ptr [{resume}], rcx",
                "call {at}",
                "6: add rsp, 8",
                "mov qword ptr [{resume}], 0",
                recovery = sym RECOVERY,
                resume = sym entries::RESUME,
                at = in(reg) END - 2,
                inout("rax") Hypercall::XenVersion.raw() as usize => result,
                inout("rdi") 0usize => _,
                out("rcx") _,
                out("r11") _,
            );
        }
        traps::clear_handler(vector::GENERAL_PROTECTION);
        check_eq!(result, XEN_VERSION as usize, "the call's result");
        let by_callback = entries::count() - failsafes;
        let by_trap = traps::count() - count;
        check_eq!(by_callback + by_trap, 1, "failsafe callbacks ({by_callback}) and traps ({by_trap})");
        if by_callback == 1 {
            check_eq!(entries::found().words[6] as u64, END, "rip in the failsafe frame");
        } else {
            let trap = traps::last_trap();
            check_eq!((trap.vector, trap.error_code), (vector::GENERAL_PROTECTION, 0), "the trap");
            check_eq!(trap.ip, GuestVirt(END), "its rip");
        }
    }
}
