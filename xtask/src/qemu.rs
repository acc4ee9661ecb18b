//! How QEMU is started, and the contract between it, the hypervisor and this tool.
//!
//! # Ways to boot
//!
//! - **PVH** (the default): `-kernel proxenos` (ELF64 with a `XEN_ELFNOTE_PHYS32_ENTRY` note), `-initrd GUEST`, which
//!   arrives as the one and only module, and without a command line of its own. Works on pc, q35 and microvm.
//! - **Multiboot 1** (chosen when there is an initrd besides the kernel): `-kernel proxenos.multiboot`,
//!   `-initrd "GUEST args,INITRD"`. `proxenos.multiboot` is made after linking from the hypervisor's ELF64 file: an
//!   ELF32 file with the same segments at the same *physical* addresses and a Multiboot 1 header that this tool adds.
//!   It is entered in 32-bit protected mode at the ELF64 file's `e_entry` (translated to a physical address when it is a
//!   virtual one) with `eax = 0x2badb002` and `ebx` = the Multiboot 1 information.
//! - **Multiboot 2** (the ISO, by GRUB): the ELF64 file itself, which holds a Multiboot 2 header in its first 32 KiB.
//!   Entered at `e_entry` as well, with `eax = 0x36d76289`.
//!
//! So the hypervisor provides: a PVH note; a Multiboot 2 header; one 32-bit `e_entry` that tells the two Multiboot
//! versions apart by `eax`. It must **not** hold a Multiboot 1 header (magic `0x1badb002`) in the first 8 KiB of
//! its file: QEMU looks for one before it looks for the PVH note.
//!
//! # Command lines
//!
//! The hypervisor's options stand in its own command line (`-append`). Under Multiboot 1 QEMU puts the file's path before
//! them as first word, which the hypervisor drops; under PVH and Multiboot 2 there is no such word. The guest's command
//! line is the first module's command line without its first word (the file name). Under PVH a module has none: the guest's command
//! line is then what follows the word `--` in the hypervisor's own command line, which is taken wherever the module carries none
//! (`debug-exit=0xf4 loglvl=all -- root=/dev/ram0 quiet`).
//!
//! # The end of a run
//!
//! Every machine has an `isa-debug-exit` device at port 0xf4, one byte written is what counts, and the hypervisor is told by
//! `debug-exit=0xf4`. When domain 0 shuts down with reason `r` (0..=0x7e) the hypervisor writes `r`, QEMU ends with
//! `(r << 1) | 1`, and `r` is the exit status of `cargo xtask run`. A hypervisor that panics writes 0x7f: exit
//! status 125. A refused domain-0 image is such a panic too. QEMU ending with 0 is an ACPI power-off: 0.
//!
//! # The console
//!
//! COM1. Lines of the hypervisor's log begin with `(px) `; all else is domain 0's.
