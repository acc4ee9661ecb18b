//! stub
pub fn end_of_interrupt() {}
pub fn report_error() {}
