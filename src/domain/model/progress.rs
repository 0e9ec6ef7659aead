//! How far a process has got.

/// What a supervisor notes of a process for the one that may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Started,
    /// It has proven that it is ready, where its app asks for a proof.
    Ready,
    /// It was told to end, or to take a release that is not proven yet.
    Leaving,
}
