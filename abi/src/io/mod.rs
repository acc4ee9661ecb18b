//! The interfaces between domains (`io/`): the control channel, block and network devices.

pub mod blkif;
pub mod domain_controller;
pub mod netif;
