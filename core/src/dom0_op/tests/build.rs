//! Contexts: what is passed on is what a domain begins with, and what is told of it; what no guest may have is refused.

use super::*;
use crate::domain::RunState;
use proxenos_abi::context::TrapInfo;
use proxenos_abi::x86_32::ExecutionContextV1A;

impl World {
    /// A domain's context as domain 0 is given it.
    fn told<A: Control>(&mut self, id: DomId, version: Dom0Version, bytes: usize) -> Vec<u8> {
        let at = self.guests[0].va(DATA);
        let argument = GetDomainInfo::<A> { domain: id, ctxt: word(at.0), ..GetDomainInfo::default() };
        let mut op = Dom0Op::new(argument);
        op.interface_version = version.raw();
        assert_eq!(self.dom0_op(&op).0, OK);
        let mut context = alloc::vec![0; bytes];
        self.guests[0].run();
        self.host.hw.copy_from_guest(at, &mut context).expect("mapped");
        context
    }
}

/// An x86_32 context in which everything is set, with these frames of the domain's as its top table and its GDT.
fn full_32(frames: &[Mfn], flags: u32) -> FullExecutionContext<X86_32> {
    context_32(frames[0], |c| {
        c.flags = flags | 1;
        let cpu = &mut c.cpu_ctxt;
        (cpu.eax, cpu.ebx, cpu.ecx, cpu.edx) = (1, 2, 3, 4);
        (cpu.esi, cpu.edi, cpu.ebp) = (5, 6, 7);
        (cpu.ds, cpu.es, cpu.fs, cpu.gs) = (0x0821, 0x0823, 0x11, 0x21);
        c.fpu_ctxt = core::array::from_fn(|index| if (24..32).contains(&index) { 0x1f } else { index as u8 });
        // MXCSR's bits that do not exist.
        (c.fpu_ctxt[26], c.fpu_ctxt[27]) = (0, 0);
        for vector in [0, 3, 14, 0x80] {
            let dpl = proxenos_abi::context::TrapFlags::from_bits_retain(if vector == 14 { 4 } else { 3 });
            c.trap_ctxt[usize::from(vector)] = TrapInfo::new(vector, dpl, X86_32::FLAT_GUESTOS_CS, 0xc010_0000);
        }
        c.fast_trap_idx = 0x80;
        (c.ldt_base, c.ldt_ents) = (0xc000_6000, 16);
        let mut gdt = [0; 16];
        gdt[0] = frames[7].0 as u32;
        (c.gdt_frames, c.gdt_ents) = (gdt, 300);
        c.debugreg = [0xc000_0000, 0, 0, 0xc000_1000, 0, 0, 0xffff_0ff1, 0x0000_0401];
        (c.event_callback_cs, c.event_callback_eip) = (0x0819, 0xc010_1000);
        (c.failsafe_callback_cs, c.failsafe_callback_eip) = (0x0819, 0xc010_2000);
    })
}

#[test]
fn what_is_passed_on_is_what_is_told() {
    for_both_callers!(told);
}

fn told<A: Control>(arch: Arch) {
    for version in [Dom0Version::V19, Dom0Version::V1A] {
        let mut world = world(arch);
        let before = world.usage();
        let (id, frames) = world.prepare::<A>(Arch::X86_32);
        // The page that is its GDT must not be mapped writable.
        let other = if arch == Arch::X86_32 { 0 } else { 2 };
        let entry = frames[7].addr().0 | bits::P | bits::A;
        let slot = (frames[1].addr().0 + 4 * 7, entry);
        // Another domain's table is not domain 0's to change: it is unpinned for that.
        assert_eq!(world.foreign_update(id, &[unpin(frames[0])]).result, OK);
        world.fill_foreign(id, Arch::X86_32, frames[1], &[(7, slot.1)]);
        let context = full_32(&frames, other);
        let given = match version {
            Dom0Version::V19 => context.as_bytes().to_vec(),
            Dom0Version::V1A => context.reordered::<ExecutionContextV1A>().as_bytes().to_vec(),
        };
        assert_eq!(world.build_with::<A>(id, version, &given), OK);
        world.usage();
        assert_eq!(world.told::<A>(id, version, given.len()), given, "{version:?}");
        let mut v19 = FullExecutionContext::<X86_32>::new_zeroed();
        v19.as_mut_bytes().copy_from_slice(&world.told::<A>(id, Dom0Version::V19, given.len()));
        assert_eq!(v19, context);
        let dom = world.find(id);
        assert_eq!(dom.run_state(), RunState::PAUSED);
        // Twice is once too often.
        assert_eq!(world.build_with::<A>(id, version, &given), refused(Errno::EINVAL));
        drop(dom);
        assert_eq!(world.destroy(id), OK);
        assert_eq!(world.usage(), before);

        // And one of four levels, which is not even pinned before.
        let id = world.create::<A>(Arch::X86_64, PAGES);
        let (_, frames) = world.mem_list::<A>(id, 100);
        world.plant_tables(id, Arch::X86_64, &frames);
        let other = if arch == Arch::X86_64 { 0 } else { 2 };
        let context = context_64(frames[0], |c| {
            c.flags = other | 1;
            let cpu = &mut c.cpu_ctxt;
            (cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx, cpu.rdi, cpu.rbp) = (1, 2, 3, 4, 6, u64::MAX);
            (cpu.r8, cpu.r9, cpu.r10, cpu.r11, cpu.r12, cpu.r13, cpu.r14, cpu.r15) = (8, 9, 10, 11, 12, 13, 14, 15);
            c.fpu_ctxt = [0x5a; 512];
            (c.fpu_ctxt[26], c.fpu_ctxt[27]) = (0, 0);
            let flags = proxenos_abi::context::TrapFlags::from_bits_retain(7);
            c.trap_ctxt[13] = TrapInfo::new(13, flags, X86_64::FLAT_GUESTOS_CS, 0x1000);
            (c.event_callback_cs, c.event_callback_eip) = (X86_64::FLAT_GUESTOS_CS.0.into(), 0xffff_ff80_0000_4000);
            c.debugreg[1] = 0x1000;
        });
        assert_eq!(world.build_with::<A>(id, version, context.as_bytes()), OK);
        assert_eq!(world.told::<A>(id, version, context.as_bytes().len()), context.as_bytes());
        world.usage();
        assert_eq!(world.destroy(id), OK);
        assert_eq!(world.usage(), before);
    }
}

#[test]
fn flags_and_fpu_are_what_a_guest_may_have() {
    let mut world = world(Arch::X86_64);
    let (id, frames) = world.prepare::<X86_64>(Arch::X86_64);
    let context = context_64(frames[0], |c| {
        c.flags = 1;
        c.cpu_ctxt.eflags = u64::MAX;
        c.fpu_ctxt = [0xff; 512];
    });
    assert_eq!(world.build_with::<X86_64>(id, Dom0Version::V19, context.as_bytes()), OK);
    world.find(id);
    let told = world.told::<X86_64>(id, Dom0Version::V19, size_of_val(&context));
    let told = FullExecutionContext::<X86_64>::read_from_bytes(&told).expect("as large");
    // No IOPL, NT, VM, VIF or VIP; IF, and bit 1.
    assert_eq!({ told.cpu_ctxt.eflags }, 0x0025_0fd7);
    assert_eq!(told.fpu_ctxt[24..28], [0xff, 0xff, 0, 0]);
}

#[test]
fn contexts_that_no_guest_may_have() {
    for_both_callers!(refuses);
}

type Change32 = fn(&mut FullExecutionContext<X86_32>, &[Mfn]);
type Change64 = fn(&mut FullExecutionContext<X86_64>, &[Mfn]);

fn refuses<A: Control>(arch: Arch) {
    let bad_32: &[(&str, Change32)] = &[
        ("cs of ring 0", |c, _| c.cpu_ctxt.cs = 0x0818),
        ("ss of ring 0", |c, _| c.cpu_ctxt.ss = 0x0820),
        ("ring 2", |c, _| (c.cpu_ctxt.cs, c.cpu_ctxt.ss) = (0x081a, 0x0822)),
        ("stack of another ring", |c, _| c.cpu_ctxt.ss = 0x0833),
        ("eip", |c, _| c.cpu_ctxt.eip = 0xfc00_0000),
        ("architecture", |c, _| c.flags ^= 2),
        ("no tables", |c, _| c.pt_base = 0),
        ("tables beyond memory", |c, _| c.pt_base = 0xffff_f000),
        ("tables of the first MiB", |c, _| c.pt_base = 0xb_8000),
        ("a table of another level", |c, frames| c.pt_base = frames[1].addr().0 as u32),
        ("kernel's stack", |c, _| c.guestos_ss = 0x0820),
        ("a handler in the hypervisor's segment", |c, _| {
            c.trap_ctxt[14] = TrapInfo::new(14, proxenos_abi::context::TrapFlags::DPL, Selector(0x0801), 1);
        }),
        ("an event callback of ring 0", |c, _| (c.event_callback_cs, c.event_callback_eip) = (0x0818, 1)),
        ("a failsafe callback of ring 3", |c, _| (c.failsafe_callback_cs, c.failsafe_callback_eip) = (0x082b, 1)),
        ("a fast trap that none can be", |c, _| c.fast_trap_idx = 14),
        ("a breakpoint in the hypervisor", |c, _| c.debugreg[2] = 0xfc00_0000),
        ("general detection", |c, _| c.debugreg[7] = 1 << 13),
        ("an LDT that is not aligned", |c, _| (c.ldt_base, c.ldt_ents) = (0xc000_0008, 1)),
        ("an LDT in the hypervisor", |c, _| (c.ldt_base, c.ldt_ents) = (0xfc00_0000, 1)),
        ("too large an LDT", |c, _| (c.ldt_base, c.ldt_ents) = (0xc000_0000, 8193)),
        ("too small a GDT", |c, _| c.gdt_ents = 295),
        ("too large a GDT", |c, _| c.gdt_ents = 8193),
        ("a GDT that is mapped writable", |c, frames| (c.gdt_frames[0], c.gdt_ents) = (frames[5].0 as u32, 512)),
        ("a GDT of another domain's", |c, _| (c.gdt_frames[0], c.gdt_ents) = (0x101, 512)),
    ];
    let bad_64: &[(&str, Change64)] = &[
        ("cs of ring 1", |c, _| c.cpu_ctxt.cs = 0x0829),
        ("ss of ring 0", |c, _| c.cpu_ctxt.ss = 0x0830),
        ("rip of the hypervisor", |c, _| c.cpu_ctxt.rip = 0xffff_8000_0000_0000),
        ("rip that is not canonical", |c, _| c.cpu_ctxt.rip = 1 << 47),
        ("architecture", |c, _| c.flags ^= 2),
        ("no tables", |c, _| c.pt_base = 0),
        ("tables of nowhere", |c, _| c.pt_base = !0xfff),
        ("a table of another level", |c, frames| c.pt_base = frames[3].addr().0),
        ("a handler that is not canonical", |c, _| {
            c.trap_ctxt[1] = TrapInfo::new(1, proxenos_abi::context::TrapFlags::DPL, X86_64::FLAT_GUESTOS_CS, 1 << 63);
        }),
        ("kernel's stack", |c, _| c.guestos_ss = 0x0831),
        ("a callback of nowhere", |c, _| (c.event_callback_cs, c.event_callback_eip) = (0x082b, 1 << 62)),
        ("a breakpoint in the hypervisor", |c, _| c.debugreg[0] = 0xffff_8100_0000_0000),
    ];
    for subject in ARCHES {
        let mut world = world(arch);
        let (id, frames) = world.prepare::<A>(subject);
        let before = world.usage();
        let good = world.context(subject, frames[0]);
        let names: Vec<&str> = match subject {
            Arch::X86_32 => bad_32.iter().map(|(name, _)| *name).collect(),
            Arch::X86_64 => bad_64.iter().map(|(name, _)| *name).collect(),
        };
        for (index, name) in names.into_iter().enumerate() {
            let bytes = match subject {
                Arch::X86_32 => {
                    let mut context = FullExecutionContext::<X86_32>::read_from_bytes(&good).expect("as large");
                    bad_32[index].1(&mut context, &frames);
                    context.as_bytes().to_vec()
                }
                Arch::X86_64 => {
                    let mut context = FullExecutionContext::<X86_64>::read_from_bytes(&good).expect("as large");
                    bad_64[index].1(&mut context, &frames);
                    context.as_bytes().to_vec()
                }
            };
            assert_eq!(world.build_with::<A>(id, Dom0Version::V19, &bytes), refused(Errno::EINVAL), "{name}");
            assert!(world.find(id).run_state().contains(RunState::UNBUILT));
            assert_eq!(world.usage(), before, "{name}");
        }
        // A context that is not there; domains that cannot be built.
        let op = |domain: DomId, at: u64| BuildDomain::<A> { domain, ctxt: word(at), ..BuildDomain::default() };
        for at in [0, 0xfc00_0000] {
            assert_eq!(world.tell(op(id, at)), refused(Errno::EFAULT));
        }
        let at = world.guests[0].va(DATA).0;
        for domain in [DomId(0), DomId(1), DomId(9), DomId::SELF] {
            assert_eq!(world.tell(op(domain, at)), refused(Errno::EINVAL));
        }
        assert_eq!(
            world.build_with::<A>(id, Dom0Version::V1A, &{
                match subject {
                    Arch::X86_64 => good.clone(),
                    Arch::X86_32 => {
                        let context = FullExecutionContext::<X86_32>::read_from_bytes(&good).expect("as large");
                        context.reordered::<ExecutionContextV1A>().as_bytes().to_vec()
                    }
                }
            }),
            OK
        );
        world.usage();
    }
}
