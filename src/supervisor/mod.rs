//! supervisor

pub mod ledger;
