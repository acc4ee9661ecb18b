//! An attack of each known class on paravirtualised paging, which must fail.
