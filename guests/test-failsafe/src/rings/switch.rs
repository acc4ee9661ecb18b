//! Leaving our ring for an outer one by `iret`, and coming back by whatever the hypervisor makes of what happens there.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS, FLAT_RING3_DS};
use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};

/// Words of the kernel's stack that are noted on the way back.
const NOTED: usize = 16;

static WORDS: [AtomicUsize; NOTED] = [const { AtomicUsize::new(0) }; NOTED];
/// esp, ss, flags, cs, ds, eax.
static STATE: [AtomicUsize; 6] = [const { AtomicUsize::new(0) }; 6];
/// Where the kernel left its stack.
static KERNEL_SP: AtomicUsize = AtomicUsize::new(0);

/// What the kernel found when it was entered.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Words on its stack, from the lowest.
    pub words: [usize; NOTED],
    /// The stack pointer.
    pub sp: usize,
    /// The stack's selector.
    pub ss: usize,
    /// The flags.
    pub flags: usize,
    /// The code selector.
    pub cs: usize,
    /// The data selector.
    pub ds: usize,
    /// eax.
    pub eax: usize,
}

/// What code in an outer ring starts with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Code address.
    pub eip: GuestVirt,
    /// Code selector.
    pub cs: Selector,
    /// Flags.
    pub flags: usize,
    /// Stack pointer.
    pub esp: usize,
    /// Stack selector.
    pub ss: Selector,
}

impl Start {
    /// Ring 3, flat.
    pub fn ring3(snippet: unsafe extern "C" fn(), esp: usize) -> Self {
        Self { eip: address(snippet), cs: FLAT_RING3_CS, flags: 0x202, esp, ss: FLAT_RING3_DS }
    }
}

unsafe extern "C" {
    fn __rings_enter(eip: usize, cs: usize, flags: usize, esp: usize, ss: usize);
    fn __rings_back();
    fn __rings_page();
}

/// The code of a snippet below.
pub fn address(snippet: unsafe extern "C" fn()) -> GuestVirt {
    GuestVirt(snippet as *const () as usize as u64)
}

/// The entry that notes what it finds and goes back to where [`enter`] was called, for any vector or callback.
pub fn back() -> GuestVirt {
    address(__rings_back)
}

/// Runs code in an outer ring until the kernel is entered at [`back`].
pub fn enter(start: &Start) -> Found {
    // SAFETY: the code does nothing but what leads to `back`, which restores what the compiler relies on.
    unsafe {
        __rings_enter(start.eip.raw() as usize, start.cs.raw().into(), start.flags, start.esp, start.ss.raw().into());
    }
    let words = WORDS.each_ref().map(|word| word.load(Ordering::Relaxed));
    let [sp, ss, flags, cs, ds, eax] = STATE.each_ref().map(|word| word.load(Ordering::Relaxed));
    Found { words, sp, ss: ss & 0xffff, flags, cs: cs & 0xffff, ds: ds & 0xffff, eax }
}

/// Lets ring 3 run the snippets.
pub fn open_snippets() {
    let at = address(__rings_page);
    let entry = Pte::new(memory::machine_of(at).mfn(), PteFlags::KERNEL_RO | PteFlags::USER);
    // SAFETY: the page holds nothing but the snippets.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }.expect("a page of ours");
}

global_asm!(
    r#"
    .text
    .globl __rings_enter
    __rings_enter:
        push    ebp
        push    ebx
        push    esi
        push    edi
        mov     dword ptr [{kernel_sp}], esp
        mov     ebp, esp
        push    dword ptr [ebp + 20 + 16]
        push    dword ptr [ebp + 20 + 12]
        push    dword ptr [ebp + 20 + 8]
        push    dword ptr [ebp + 20 + 4]
        push    dword ptr [ebp + 20]
        mov     eax, 0x5eed
        iretd

    .globl __rings_back
    __rings_back:
        push    eax
        mov     eax, ds
        push    eax
        mov     eax, {ds}
        mov     ds, eax
        mov     es, eax
        pop     eax
        mov     dword ptr [{state} + 16], eax
        pop     eax
        mov     dword ptr [{state} + 20], eax
        mov     dword ptr [{state}], esp
        mov     eax, ss
        mov     dword ptr [{state} + 4], eax
        pushfd
        pop     eax
        mov     dword ptr [{state} + 8], eax
        mov     eax, cs
        mov     dword ptr [{state} + 12], eax
        xor     ecx, ecx
    2:  mov     edx, dword ptr [esp + ecx * 4]
        mov     dword ptr [{words} + ecx * 4], edx
        inc     ecx
        cmp     ecx, {noted}
        jb      2b
        mov     eax, {ds}
        mov     ss, eax
        mov     esp, dword ptr [{kernel_sp}]
        push    {cs}
        lea     eax, [3f]
        push    eax
        retf
    3:  cld
        pop     edi
        pop     esi
        pop     ebx
        pop     ebp
        ret

    /* What runs in outer rings. Data is reached by ss: iret has emptied the other registers. */
    .balign 4096
    .globl __rings_page, __ring_ud2, __ring_int3, __ring_into, __ring_hypercall, __ring_int45, __ring_read, __ring_write
    .globl __ring_read_m2p, __ring_cli, __ring_hlt, __ring_in, __ring_kernel_data, __ring_kernel_stack, __ring_far_return
    .globl __ring_int80, __ring_iret, __ring_spin, __ring_ins, __ring_outs, __ring_data_ud2, __ring_fpu
    .globl __kernel_ud2, __kernel_cli, __kernel_int80
    __rings_page:
    __ring_ud2:             ud2
    __ring_int3:            int3
    __ring_into:            mov al, 0x7f
                            inc al
                            .byte 0xce          /* into */
    __ring_hypercall:       mov eax, 17
                            int 0x82
    __ring_int45:           int 0x45
    __ring_int80:           int 0x80
    __ring_read:            mov ecx, dword ptr [esp]
                            ud2
    __ring_write:           mov dword ptr ss:[esp], 0x600d
                            ud2
    __ring_read_m2p:        mov ecx, dword ptr ss:[0xfc000000]
                            ud2
    __ring_cli:             cli
    __ring_hlt:             hlt
    __ring_in:              in al, 0x80
    __ring_kernel_data:     mov eax, {ds}
                            mov es, eax
    __ring_kernel_stack:    mov eax, {ds}
                            mov ss, eax
    __ring_far_return:      retf
    __ring_iret:            iretd
    __ring_spin:            jmp __ring_spin
    /* Four bytes, from or to where the stack pointer leads; 18 bytes lie before the instruction. */
    __ring_ins:             mov eax, {user_ds}
                            mov es, eax
                            mov edi, esp
                            mov edx, 0x3f8
                            xor ecx, ecx
                            mov cl, 4
                            rep insb
                            ud2
    __ring_outs:            mov eax, {user_ds}
                            mov ds, eax
                            mov esi, esp
                            mov edx, 0x3f8
                            xor ecx, ecx
                            mov cl, 4
                            rep outsb
                            ud2
    __ring_data_ud2:        mov eax, {user_ds}
                            mov ds, eax
                            ud2
    __ring_fpu:             fld1
                            fstp st(0)
                            ud2
    /* In ring 1, where iret leaves the stack as it was, with the one to be taken on top. */
    __kernel_ud2:           mov esp, dword ptr [esp]
                            ud2
    __kernel_cli:           mov esp, dword ptr [esp]
                            cli
    __kernel_int80:         mov esp, dword ptr [esp]
                            int 0x80
    .balign 4096
    .text
    "#,
    kernel_sp = sym KERNEL_SP,
    state = sym STATE,
    words = sym WORDS,
    noted = const NOTED,
    cs = const FLAT_RING1_CS.raw(),
    ds = const FLAT_RING1_DS.raw(),
    user_ds = const FLAT_RING3_DS.raw(),
);

/// Snippets, by the instruction that ends them.
pub mod snippet {
    unsafe extern "C" {
        pub fn __ring_ud2();
        pub fn __ring_int3();
        pub fn __ring_into();
        pub fn __ring_hypercall();
        pub fn __ring_int45();
        pub fn __ring_int80();
        pub fn __ring_read();
        pub fn __ring_write();
        pub fn __ring_read_m2p();
        pub fn __ring_cli();
        pub fn __ring_hlt();
        pub fn __ring_in();
        pub fn __ring_kernel_data();
        pub fn __ring_kernel_stack();
        pub fn __ring_far_return();
        pub fn __ring_iret();
        pub fn __ring_spin();
        pub fn __ring_ins();
        pub fn __ring_outs();
        pub fn __ring_data_ud2();
        pub fn __ring_fpu();
        pub fn __kernel_ud2();
        pub fn __kernel_cli();
        pub fn __kernel_int80();
    }
}
