//! Memory of the hypervisor itself: address-space layout, page tables, early frames, heap, device mappings.

pub mod early;
pub mod heap;
pub mod ioremap;
pub mod layout;
pub mod paging;
pub mod ranges;
