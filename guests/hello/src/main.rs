//! The first guest.
#![no_std]
#![no_main]
use proxenos_guest::{StartInfo, println};
proxenos_guest::entry!(main);
fn main(si: &StartInfo) {
    proxenos_guest::init();
    println!("hello {:?}", si.flags());
}
