//! `sched`: what is not set stays as it is, so parameters are read before they are written.

use proxenos_rpc::{DomainSched, HostSched, Millis, Nanos, Reply, Request, Scheduler, Subject};
use serde_json::{Value, json};

use super::{QUICK, open};
use crate::args::{Cli, SchedArgs};
use crate::problem::{Problem, Result, Status};
use crate::session::Session;
use crate::units::exact;
use crate::upload::unexpected;
use crate::view;

/// `sched`.
pub fn command(cli: &Cli, args: &SchedArgs) -> Result<u8> {
    let mut session = open(cli)?;
    let value = match &args.domain {
        Some(domain) => domain_value(&adjust_domain(cli, &mut session, args, domain)?),
        None => host_value(&adjust_host(cli, &mut session, args)?),
    };
    if cli.json {
        view::print_json(&value)?;
    } else {
        let Value::Object(members) = &value else { return Ok(0) };
        let readable: serde_json::Map<String, Value> =
            members.iter().map(|(name, value)| readable(name, value)).collect();
        view::print(&super::show::lines(&Value::Object(readable)))?;
    }
    Ok(0)
}

/// Times without the unit in their names.
fn readable(name: &str, value: &Value) -> (String, Value) {
    match (name.strip_suffix("_ns"), value.as_u64()) {
        (Some(short), Some(ns)) => (short.to_owned(), exact(Nanos(ns)).into()),
        _ => (name.to_owned(), value.clone()),
    }
}

/// Options that were given, and are for other schedulers or other subjects than this one.
fn refuse(runs: Scheduler, given: &[(&str, bool)]) -> Result<()> {
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => {
            let name = view::scheduler(runs);
            Err(Problem::new(Status::Usage, format!("--{option} means nothing here"))
                .because(format!("the host runs the scheduler {name}"))
                .hint("`proxenos sched --help` says what is for which; `proxenos host start --sched` chooses another"))
        }
    }
}

fn adjust_host(cli: &Cli, session: &mut Session, args: &SchedArgs) -> Result<HostSched> {
    let Reply::HostSched(now) =
        session.call("cannot read the scheduler", Request::GetHostSched, cli.deadline(QUICK))?
    else {
        return Err(unexpected());
    };
    let runs = now.scheduler();
    let wanted = match now {
        HostSched::Bvt { context_allowance } => {
            refuse(runs, &[("slice", args.slice.is_some())])?;
            HostSched::Bvt { context_allowance: args.allowance.unwrap_or(context_allowance) }
        }
        HostSched::RoundRobin { slice } => {
            refuse(runs, &[("allowance", args.allowance.is_some())])?;
            HostSched::RoundRobin { slice: args.slice.unwrap_or(slice) }
        }
        HostSched::Atropos => {
            refuse(runs, &[("slice", args.slice.is_some()), ("allowance", args.allowance.is_some())])?;
            HostSched::Atropos
        }
    };
    if wanted != now {
        session.call("cannot set the scheduler", Request::SetHostSched(wanted), cli.deadline(QUICK))?;
    }
    Ok(wanted)
}

fn adjust_domain(cli: &Cli, session: &mut Session, args: &SchedArgs, domain: &Subject) -> Result<DomainSched> {
    let doing = format!("cannot read the scheduling of {domain}");
    let Reply::DomainSched(now) = session.call(&doing, Request::GetDomainSched(domain.clone()), cli.deadline(QUICK))?
    else {
        return Err(unexpected());
    };
    let wanted = changed(now, args)?;
    if wanted != now {
        let request = Request::SetDomainSched(domain.clone(), wanted);
        session.call(&format!("cannot set the scheduling of {domain}"), request, cli.deadline(QUICK))?;
    }
    Ok(wanted)
}

fn changed(now: DomainSched, args: &SchedArgs) -> Result<DomainSched> {
    let for_bvt = [
        ("weight", args.weight.is_some()),
        ("advance", args.advance.is_some()),
        ("warp", args.warp.is_some()),
        ("warp-limit", args.warp_limit.is_some()),
        ("unwarp", args.unwarp.is_some()),
    ];
    let for_atropos = [
        ("period", args.period.is_some()),
        ("slice", args.slice.is_some()),
        ("latency", args.latency.is_some()),
        ("extra", args.extra.is_some()),
    ];
    let runs = now.scheduler();
    match now {
        DomainSched::Bvt { advance, warping, warp, warp_limit, unwarp } => {
            refuse(runs, &for_atropos)?;
            Ok(DomainSched::Bvt {
                advance: args.advance.or(args.weight.map(|weight| 1000 / weight)).unwrap_or(advance),
                warping: args.warp.map_or(warping, |warp| warp != 0),
                warp: args.warp.unwrap_or(warp),
                warp_limit: millis(args.warp_limit, "warp-limit")?.unwrap_or(warp_limit),
                unwarp: millis(args.unwarp, "unwarp")?.unwrap_or(unwarp),
            })
        }
        DomainSched::Atropos { period, slice, latency, extra } => {
            refuse(runs, &for_bvt)?;
            let wanted = (args.period.unwrap_or(period), args.slice.unwrap_or(slice));
            if wanted.1 > wanted.0 {
                return Err(Problem::new(Status::Usage, "the slice is longer than its period"));
            }
            Ok(DomainSched::Atropos {
                period: wanted.0,
                slice: wanted.1,
                // It cannot be beyond the period.
                latency: args.latency.unwrap_or(latency.min(wanted.0)),
                extra: args.extra.unwrap_or(extra),
            })
        }
        DomainSched::RoundRobin => {
            refuse(runs, &[&for_bvt[..], &for_atropos].concat())?;
            Ok(DomainSched::RoundRobin)
        }
    }
}

/// The interface counts some times in milliseconds, so others cannot be had.
fn millis(time: Option<Nanos>, option: &str) -> Result<Option<Millis>> {
    match time {
        Some(Nanos(ns)) if ns % 1_000_000 != 0 => {
            Err(Problem::new(Status::Usage, format!("--{option} is in whole milliseconds")))
        }
        time => Ok(time.map(|Nanos(ns)| Millis(ns / 1_000_000))),
    }
}

fn host_value(sched: &HostSched) -> Value {
    let name = view::scheduler(sched.scheduler());
    match sched {
        HostSched::Bvt { context_allowance } => json!({ "scheduler": name, "allowance_ns": context_allowance.0 }),
        HostSched::Atropos => json!({ "scheduler": name }),
        HostSched::RoundRobin { slice } => json!({ "scheduler": name, "slice_ns": slice.0 }),
    }
}

fn domain_value(sched: &DomainSched) -> Value {
    let name = view::scheduler(sched.scheduler());
    match sched {
        DomainSched::Bvt { advance, warping, warp, warp_limit, unwarp } => json!({
            "scheduler": name,
            "advance": advance,
            "weight": 1000_u32.checked_div(*advance),
            "warping": warping,
            "warp": warp,
            "warp_limit_ns": warp_limit.0.saturating_mul(1_000_000),
            "unwarp_ns": unwarp.0.saturating_mul(1_000_000),
        }),
        DomainSched::Atropos { period, slice, latency, extra } => json!({
            "scheduler": name,
            "period_ns": period.0,
            "slice_ns": slice.0,
            "latency_ns": latency.0,
            "extra": extra,
        }),
        DomainSched::RoundRobin => json!({ "scheduler": name }),
    }
}
