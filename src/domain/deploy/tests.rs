//! The machine as a whole, driven by an explicit clock and a shell that does everything at once.

mod bench;
mod hands;
mod laws;
mod pipeline;
mod place;
mod queue;
mod steps;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::domain::{
    api::{By, DAMAGED, DeployState, Fetch, Fetched, StepState, To, Verdict},
    config::{
        App, Deploy, GiveUp, Identity, Layout, Limits, Logs, OnFailed, Policy, Ready, Replace, Restart, Step, Stop,
        StopStage, Track,
    },
    model::{At, Glob, Now, Signal, Size},
};
