//! The hypervisor's symbol table: what lets it name functions in a backtrace without reading its own ELF file.
//!
//! The hypervisor reserves a loaded, read-only section `.symtab_blob` of fixed size. Its first 12 bytes are the
//! magic and the capacity; the rest is zero until this module fills it in the linked file. A blob that was never
//! filled has `count == 0`, and the reader must cope with that.
//!
//! # Format
//!
//! All numbers are little-endian `u32`, aligned to 4 bytes; the section itself is aligned to at least 4.
//!
//! | offset        | field         | meaning                                                                      |
//! |---------------|---------------|------------------------------------------------------------------------------|
//! | 0             | `magic`       | the 8 bytes `PXSYMS\0\0`                                                     |
//! | 8             | `capacity`    | bytes of the whole section, header included (written by the hypervisor)      |
//! | 12            | `used`        | bytes in use, header included; `used <= capacity`                            |
//! | 16            | `count`       | number of entries                                                            |
//! | 20            | `pool_offset` | offset of the string pool from the section's start, `24 + 8 * count`         |
//! | 24            | entries       | `count` times (`function`, `name`), ascending by `function`, no two equal    |
//! | `pool_offset` | pool          | NUL-terminated UTF-8 names, up to `used`                                     |
//!
//! `function` is the function's first byte as an offset from the *image base*; `name` is the name's offset in the
//! pool. The image base is the value of the ELF symbol `__image_base` (the linker script defines it), or, where
//! there is no such symbol, the lowest `p_vaddr` of a `PT_LOAD` segment in the upper half of the address space.
//! Functions below the base or 4 GiB and more above it (32-bit boot code) have no entry. One entry, named
//! `<end>`, stands at the end of the last function, so an address past all code is not taken for its tail.
//!
//! Names are demangled and carry no hash. To find an address, subtract the image base and take the last entry
//! whose `function` is not above the result.
