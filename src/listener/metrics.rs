//! `GET /metrics`: numbers of the supervisor as text that Prometheus reads, named as its guide asks.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use hyper::{HeaderMap, Response, StatusCode, header::ACCEPT};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    answer::{Content, Problem, reply},
    api::{LIMIT, ask, refused, strange},
    link::{Following, Link},
};
use crate::domain::{
    api::{
        AppView, Ask, DEPLOY_BOUNDS, DeployState, Durations, ENDS, InstanceState, InstanceView, ListenerView, Metrics,
        Reply, Request, Said, Saying, TURN_BOUNDS,
    },
    model::InstanceId,
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics channel, which needs no token and answers nothing else.
pub(super) struct Numbers {
    pub link: Link<Ask, Said>,
}

impl Numbers {
    pub(super) async fn show(&self, headers: &HeaderMap, from: IpAddr) -> Result<Response<Content>, Problem> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Page(self.ask(from).await?)));
        let (mut page, open) = (String::new(), wants_openmetrics(headers));
        let written =
            if open { text::encode(&mut page, &registry) } else { prometheus_text::encode(&mut page, &registry) };
        written.map_err(|_| strange())?;
        Ok(reply(StatusCode::OK, if open { OPENMETRICS } else { prometheus_text::CONTENT_TYPE }, page))
    }

    /// Any answer shows that the supervisor answers.
    pub(super) async fn health(&self, from: IpAddr) -> Result<Response<Content>, Problem> {
        self.ask(from).await?;
        Ok(reply(StatusCode::OK, "text/plain", "ok"))
    }

    async fn ask(&self, from: IpAddr) -> Result<Metrics, Problem> {
        match self.link.ask(ask(None, from, None, Request::Metrics), Following::default(), None, LIMIT).await?.what {
            Saying::Done(Reply::Metrics(metrics)) => Ok(*metrics),
            Saying::Refused(refusal) => Err(refused(refusal)),
            _ => Err(strange()),
        }
    }
}

/// Prometheus names it; whoever names nothing gets the older format, which every tool reads.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|v| v.contains("application/openmetrics-text")))
}

#[derive(Debug)]
struct Page(Metrics);

/// One family at a time.
struct Pen<'a>(DescriptorEncoder<'a>);

impl Pen<'_> {
    fn gauges<const N: usize, V: EncodeGaugeValue>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        rows: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        rows.into_iter().try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<const N: usize, V: EncodeCounterValue>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        rows: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        rows.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    fn durations<'d, const N: usize>(
        &mut self,
        (name, help, bounds): (&str, &str, &[f64]),
        rows: impl IntoIterator<Item = ([(&'static str, String); N], &'d Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        rows.into_iter().try_for_each(|(labels, durations)| {
            let mut one = family.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(durations.sum_s, durations.count(), &durations.buckets(bounds), None)
        })
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut pen = Pen(encoder);
        self.server(&mut pen)?;
        self.apps(&mut pen)?;
        self.instances(&mut pen)?;
        self.deploys(&mut pen)
    }
}

impl Page {
    fn server(&self, pen: &mut Pen<'_>) -> fmt::Result {
        let Metrics { status, deliveries, .. } = &self.0;
        let supervisor = &status.supervisor;
        let version = [("version", supervisor.version.clone())];
        pen.0
            .encode_descriptor("everhook_build", "Which everhook this is", None, MetricType::Info)?
            .encode_info(&version)?;
        let start = supervisor.since.0 as f64 / 1000.0;
        pen.gauges(("process_start_time", "When the supervisor started", Some(Unit::Seconds)), [([], start)])?;
        let cpu = self.0.cpu_s.map(|cpu| ([], cpu));
        pen.counters(("process_cpu", "Processor time of the supervisor", Some(Unit::Seconds)), cpu)?;
        let memory = self.0.memory_bytes.map(|memory| ([], memory));
        pen.gauges(("process_resident_memory", "Memory of the supervisor", Some(Unit::Bytes)), memory)?;
        pen.durations(
            ("everhook_loop_turn", "How long the loop was busy with one thing", &TURN_BOUNDS),
            [([], &self.0.turns)],
        )?;
        let differs = u64::from(supervisor.config_differs);
        pen.gauges(
            ("everhook_config_differs", "The config file says something else than what runs", None),
            [([], differs)],
        )?;
        let works = u64::from(self.0.store_works);
        pen.gauges(("everhook_store_up", "The store takes what comes", None), [([], works)])?;
        let logger = [([], u64::from(supervisor.logger.pid.is_some()))];
        pen.gauges(("everhook_logger_up", "The logger runs", None), logger)?;
        pen.counters(("everhook_logger_restarts", "Restarts of the logger", None), [([], supervisor.logger.restarts)])?;
        // Whoever has taken the address over counts, not who leaves there.
        let stays = |one: &&ListenerView| one.state != InstanceState::Stopping;
        let listeners = || supervisor.listeners.iter().filter(stays).map(|one| ([("bind", one.bind.clone())], one));
        let up = listeners().map(|(bind, one)| (bind, u64::from(one.state == InstanceState::Ready)));
        pen.gauges(("everhook_listener_up", "The listener of this address runs", None), up)?;
        let restarts = listeners().map(|(bind, one)| (bind, one.restarts));
        pen.counters(("everhook_listener_restarts", "Restarts of the listener of this address", None), restarts)?;
        let states = [
            ("accepted", deliveries.accepted),
            ("skipped", deliveries.skipped),
            ("duplicate", deliveries.duplicate),
            ("refused", deliveries.refused),
        ];
        let states = states.map(|(state, count)| ([("state", state.to_owned())], count));
        pen.counters(("everhook_deliveries", "Webhook requests by what became of them", None), states)?;
        let help = "Proven webhook requests whose repository no app deploys, as after a rename";
        pen.counters(("everhook_deliveries_unmatched", help, None), [([], deliveries.unmatched)])
    }

    fn apps(&self, pen: &mut Pen<'_>) -> fmt::Result {
        let apps = &self.0.status.apps;
        let app = |app: &AppView| [("app", app.name.to_string())];
        let up = apps.iter().map(|one| {
            let up = matches!(one.state, InstanceState::Ready | InstanceState::Done | InstanceState::Deployed);
            (app(one), u64::from(up))
        });
        pen.gauges(("everhook_app_up", "The app is ready, done or deployed", None), up)?;
        let states = apps.iter().flat_map(|one| {
            InstanceState::ALL.iter().map(|&state| {
                ([("app", one.name.to_string()), ("state", state.to_string())], u64::from(one.state == state))
            })
        });
        pen.gauges(("everhook_app_state", "1 for the state that the app is in", None), states)?;
        let behind = apps.iter().filter_map(|one| Some((app(one), one.behind?)));
        pen.gauges(("everhook_app_behind_commits", "Commits that are not live, as last seen", None), behind)?;
        let frozen = apps.iter().map(|one| (app(one), u64::from(one.frozen.is_some())));
        pen.gauges(("everhook_app_frozen", "No deploy of it starts", None), frozen)
    }

    fn instances(&self, pen: &mut Pen<'_>) -> fmt::Result {
        let instances = self.counted();
        let all = || instances.iter().map(|(id, view)| (labels(id), view));
        let up = all().map(|(id, view)| (id, u64::from(view.state == InstanceState::Ready)));
        pen.gauges(("everhook_instance_up", "The instance is ready", None), up)?;
        let states = all().flat_map(|([app, instance], view)| {
            InstanceState::ALL.iter().filter(|state| **state != InstanceState::Deployed).map(move |&state| {
                ([app.clone(), instance.clone(), ("state", state.to_string())], u64::from(view.state == state))
            })
        });
        pen.gauges(("everhook_instance_state", "1 for the state that the instance is in", None), states)?;
        let restarts = all().map(|(id, view)| (id, view.restarts));
        pen.counters(("everhook_instance_restarts", "Restarts by itself since somebody started it", None), restarts)?;
        let exits = self.0.exits.iter().flat_map(|exits| {
            let [app, instance] = labels(&exits.instance);
            ENDS.iter()
                .zip(exits.counts)
                .map(move |(reason, count)| ([app.clone(), instance.clone(), ("reason", (*reason).to_owned())], count))
        });
        pen.counters(("everhook_instance_exits", "Ends of the main process, by how it ended", None), exits)?;
        let memory = all().filter_map(|(id, view)| Some((id, view.memory_bytes?)));
        pen.gauges(("everhook_instance_memory", "Memory of the whole tree", Some(Unit::Bytes)), memory)?;
        let cpu = all().filter_map(|(id, view)| Some((id, view.cpu_s?)));
        pen.counters(("everhook_instance_cpu", "Processor time of the whole tree", Some(Unit::Seconds)), cpu)?;
        let lost = self.0.lost.iter().map(|lost| (labels(&lost.instance), lost.bytes));
        pen.counters(("everhook_instance_log_lost", "Output that no disk took", Some(Unit::Bytes)), lost)
    }

    /// Beside one that took its place, whoever drains counts no more.
    fn counted(&self) -> BTreeMap<&InstanceId, &InstanceView> {
        let mut counted = BTreeMap::new();
        for view in self.0.status.apps.iter().flat_map(|app| &app.instances) {
            if view.state != InstanceState::Draining || !counted.contains_key(&view.name) {
                counted.insert(&view.name, view);
            }
        }
        counted
    }

    fn deploys(&self, pen: &mut Pen<'_>) -> fmt::Result {
        let deploys = &self.0.deploys;
        let waiting = deploys.iter().map(|one| ([("app", one.app.to_string())], one.waiting));
        pen.gauges(
            ("everhook_deploys_waiting", "Deploys that wait for their turn or for somebody's word", None),
            waiting,
        )?;
        let running = deploys.iter().map(|one| ([("app", one.app.to_string())], u64::from(one.running)));
        pen.gauges(("everhook_deploys_running", "Deploys under way", None), running)?;
        let ended = deploys.iter().flat_map(|one| {
            DeployState::ENDS
                .iter()
                .zip(one.ended)
                .map(|(state, count)| ([("app", one.app.to_string()), ("state", state.to_string())], count))
        });
        pen.counters(("everhook_deploys", "Deploys that ended, by how", None), ended)?;
        let durations = deploys.iter().map(|one| ([("app", one.app.to_string())], &one.durations));
        pen.durations(("everhook_deploy_duration", "From the start of a deploy to its end", &DEPLOY_BOUNDS), durations)
    }
}

fn labels(id: &InstanceId) -> [(&'static str, String); 2] {
    [("app", id.app.to_string()), ("instance", id.to_string())]
}
