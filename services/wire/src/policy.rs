//! A policy in messages: one translation for whoever sends or takes one.

use continuum_model::hours::{Hours, Weekday};
use continuum_model::policy::{BandwidthLimit, Policy, RetentionStep};
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;

/// A policy's fields as a message, without the name and id under which a vault knows it.
pub fn to_message(policy: &Policy) -> pb::Policy {
    let step = |step: &RetentionStep| pb::RetentionStep {
        every_seconds: step.every_seconds,
        for_seconds: step.for_seconds,
    };
    pb::Policy {
        id: String::new(),
        name: String::new(),
        machines: 0,
        version: 0,
        deleted: false,
        retention_seconds: policy.retention_seconds,
        steps: policy.steps.iter().map(step).collect(),
        history_bytes_max: policy.history_bytes_max.map(|bytes| bytes.0),
        crash_point_seconds: policy.crash_point_seconds,
        app_point_seconds: policy.app_point_seconds,
        rpo_threshold_seconds: policy.rpo_threshold_seconds,
        staging_bytes_max: policy.staging_bytes_max.0,
        compression: policy.compression,
        encryption: policy.encryption,
        replication_interval_seconds: policy.replication_interval_seconds,
        bandwidth: policy.bandwidth.iter().map(limit_to_message).collect(),
        resync_window: policy.resync_window.as_ref().map(hours_to_message),
    }
}

/// The policy that a message holds; whether its values make sense is [`Policy::problems`]' to say.
///
/// Errors: which field holds no value of its kind, and what would be one.
pub fn from_message(message: &pb::Policy) -> Result<Policy, String> {
    let step = |step: &pb::RetentionStep| RetentionStep {
        every_seconds: step.every_seconds,
        for_seconds: step.for_seconds,
    };
    let window = message.resync_window.as_ref().map(hours_from).transpose();
    Ok(Policy {
        retention_seconds: message.retention_seconds,
        steps: message.steps.iter().map(step).collect(),
        history_bytes_max: message.history_bytes_max.map(Bytes),
        crash_point_seconds: message.crash_point_seconds,
        app_point_seconds: message.app_point_seconds,
        rpo_threshold_seconds: message.rpo_threshold_seconds,
        staging_bytes_max: Bytes(message.staging_bytes_max),
        compression: message.compression,
        encryption: message.encryption,
        replication_interval_seconds: message.replication_interval_seconds,
        bandwidth: message.bandwidth.iter().map(limit_from).collect::<Result<_, _>>()?,
        resync_window: window.map_err(|why| format!("resync_window: {why}"))?,
    })
}

/// One limit of a schedule as a message.
pub fn limit_to_message(limit: &BandwidthLimit) -> pb::BandwidthLimit {
    pb::BandwidthLimit { hours: Some(hours_to_message(&limit.hours())), bytes_per_sec: limit.bytes_per_sec }
}

/// The limit that a message holds.
pub fn limit_from(message: &pb::BandwidthLimit) -> Result<BandwidthLimit, String> {
    let hours = message.hours.as_ref().ok_or("bandwidth: a limit without its hours; say from and to")?;
    let Hours { days, from, to } = hours_from(hours).map_err(|why| format!("bandwidth: {why}"))?;
    Ok(BandwidthLimit { days, from, to, bytes_per_sec: message.bytes_per_sec })
}

/// Hours of the week as a message.
pub fn hours_to_message(hours: &Hours) -> pb::Hours {
    pb::Hours {
        days: hours.days.iter().map(|day| day.name().to_owned()).collect(),
        from: hours.from.to_string(),
        to: hours.to.to_string(),
    }
}

/// The hours that a message holds.
pub fn hours_from(message: &pb::Hours) -> Result<Hours, String> {
    let day = |name: &String| {
        Weekday::named(name).ok_or_else(|| format!("{} is no day: write mon to sun", shown(name)))
    };
    Ok(Hours {
        days: message.days.iter().map(day).collect::<Result<_, _>>()?,
        from: message.from.parse()?,
        to: message.to.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_and_what_makes_no_sense_names_its_field() {
        let policy = Policy {
            steps: vec![RetentionStep { every_seconds: 3600, for_seconds: 604_800 }],
            history_bytes_max: Some(Bytes::gib(1)),
            encryption: true,
            replication_interval_seconds: 30,
            bandwidth: vec![BandwidthLimit {
                days: vec![Weekday::Mon, Weekday::Sun],
                from: "08:00".parse().unwrap(),
                to: "18:00".parse().unwrap(),
                bytes_per_sec: 1 << 20,
            }],
            resync_window: Some(Hours {
                days: vec![],
                from: "18:30".parse().unwrap(),
                to: "06:00".parse().unwrap(),
            }),
            ..Policy::default()
        };
        assert_eq!(from_message(&to_message(&policy)), Ok(policy.clone()));
        let mut wrong = to_message(&policy);
        wrong.resync_window = Some(pb::Hours { from: "25:00".into(), ..Default::default() });
        assert!(from_message(&wrong).unwrap_err().starts_with("resync_window: "));
        let mut wrong = to_message(&policy);
        wrong.bandwidth[0].hours = Some(pb::Hours { days: vec!["\u{1b}".into()], ..Default::default() });
        let why = from_message(&wrong).unwrap_err();
        assert!(why.starts_with("bandwidth: ") && !why.contains('\u{1b}'), "{why}");
    }
}
