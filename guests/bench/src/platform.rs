//! What the measuring loop stands on.

pub use proxenos_guest::arch::read_tsc;
pub use proxenos_guest::boot::option;
pub use proxenos_guest::println;
