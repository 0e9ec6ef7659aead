//! `supervisor.ron`: what stands in it, loaded with the place of every fault, judged against the
//! machine, compared with what runs. SURFACE.md section 7 is the reference.

mod schema;

pub use schema::*;
