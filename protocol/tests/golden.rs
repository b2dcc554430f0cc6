//! Holds the wire format: the bytes of every message kind, written out. A test that fails here means that
//! peers of another build would not understand this one: the change needs a new message kind, or, where an
//! enum got a variant at its end, a new line here.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fmt::Debug;

use reeld_protocol::codec::{decode, encode};
use reeld_protocol::mapping::{self, MappedFrame};
use reeld_protocol::message::{
    Dtype, FramesReply, GetFrames, GetKeyFrames, KEY_FRAMES_PER_REPLY_MAX, MemoryRange, Message, OpenSource,
    PREFETCH_FRAMES_MAX, Part, PartLayout, Prefetch, SeekMode, SourceOpened, Ticket, Wanted, kind,
};
use reeld_protocol::metadata::{
    AudioHeader, ContentMetadata, EffectiveMetadata, MediaMetadata, MediaType, Rational, StreamMetadata,
    VideoHeader,
};
use reeld_protocol::status::{Activity, ClientStatus, EngineStatus, ErrorCount, Status, Totals, UserStatus};
use reeld_protocol::{
    ArenaId, ErrorCode, Hello, LeaseId, Notice, Refusal, RefusalCause, Reply, Request, SourceId, StreamIndex,
    Transform, Welcome, WireError,
};

/// Bytes from hexadecimal digits; blanks only group them.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The message has this number and these bytes, and the bytes mean this message.
#[track_caller]
fn assert_golden<M: Message + PartialEq + Debug>(message: &M, number: u16, golden: &str) {
    assert_eq!(hex(&message.encode().unwrap()), hex(&bytes(golden)), "bytes of {message:?}");
    assert_eq!(message.kind(), number);
    assert_eq!(M::decode(number, &bytes(golden)).unwrap().as_ref(), Some(message));
}

#[test]
fn open_source() {
    let message = OpenSource {
        label: "a.mp4".into(),
        stream: Some(StreamIndex(3)),
        seek_mode: SeekMode::Approximate,
        is_memory: true,
        thread_count: 300,
    };
    assert_golden(&Request::OpenSource(message), kind::OPEN_SOURCE, "05612e6d703401030101fb2c01");
    let least = OpenSource {
        label: String::new(),
        stream: None,
        seek_mode: SeekMode::Exact,
        is_memory: false,
        thread_count: 0,
    };
    assert_golden(&Request::OpenSource(least.clone()), kind::OPEN_SOURCE, "0000000000");
    let mapped = OpenSource { seek_mode: SeekMode::Mapped, ..least };
    assert_golden(&Request::OpenSource(mapped), kind::OPEN_SOURCE, "0000020000");
}

#[test]
fn mapping() {
    let frame = |pts, is_key| MappedFrame { pts, duration: 512, is_key };
    let golden = concat!(
        "5245454c444d5001",
        "0200000000000000",
        "feffffffffffffff00020000000000000100000000000000",
        "000200000000000000020000000000000000000000000000",
    );
    assert_eq!(mapping::to_bytes(&[frame(512, false), frame(-2, true)]).unwrap(), bytes(golden));
}

#[test]
fn get_frames() {
    let part = |wanted, dtype| Part { source: SourceId(7), wanted, dtype, transforms: vec![] };
    let transforms = vec![
        Transform::Resize { height: 224, width: 300 },
        Transform::Crop { top: 1, left: 2, height: 200, width: 250 },
        Transform::CenterCrop { height: 3, width: 4 },
    ];
    let parts = vec![
        part(Wanted::Indices(vec![0, -1, 300]), Dtype::Uint8),
        part(Wanted::IndexRange { start: 1, stop: 70_000, step: 2 }, Dtype::Float32),
        Part { transforms, ..part(Wanted::PlayedAt(0.5), Dtype::Uint8) },
        part(Wanted::PlayedAtEach(vec![1.0, -2.0]), Dtype::Uint8),
        part(Wanted::PlayedInRange { start: 0.0, stop: 1.5 }, Dtype::Uint8),
        part(Wanted::IndicesInMemory(MemoryRange { offset_bytes: 0, count: 5000 }), Dtype::Uint8),
        part(
            Wanted::PlayedAtEachInMemory(MemoryRange { offset_bytes: 40_000, count: 1 << 40 }),
            Dtype::Uint8,
        ),
    ];
    let message = GetFrames { parts, priority: -2, timeout_millis: Some(1000) };
    assert_golden(
        &Request::GetFrames(message),
        kind::GET_FRAMES,
        "070700030001fb58020000070101fc701101000201000702000000000000e03f000300e0fb2c0101 \
         0102c8fa0203040703020000000000 \
         00f03f00000000000000c0000007040000000000000000000000000000f83f0000070500fb881300 \
         000706fb409cfd00000000000100000000fe01fbe803",
    );
    let least = GetFrames { parts: Vec::new(), priority: 0, timeout_millis: None };
    assert_golden(&Request::GetFrames(least), kind::GET_FRAMES, "000000");
}

#[test]
fn status_request() {
    assert_golden(&Request::Status, kind::STATUS, "");
}

/// 32 bytes, as they are: no length before them.
const NUMBER: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";

fn ticket() -> Ticket {
    let mut number = std::array::from_fn(|position| position as u8);
    number[31] = 255;
    Ticket(number)
}

#[test]
fn tickets() {
    assert_golden(&Request::IssueTicket(LeaseId(300)), kind::ISSUE_TICKET, "fb2c01");
    assert_golden(&Request::RedeemTicket(ticket()), kind::REDEEM_TICKET, NUMBER);
    assert_golden(&Reply::TicketIssued(ticket()), kind::TICKET_ISSUED, NUMBER);
    assert_golden(&Notice::Session, kind::SESSION, "");
    assert_golden(&Notice::Copied { results: 2, bytes: 70_000 }, kind::COPIED, "02fc70110100");
}

#[test]
fn prefetch() {
    let message = Prefetch { source: SourceId(7), wanted: Wanted::Indices(vec![0, -1, 300]) };
    assert_golden(&Notice::Prefetch(message), kind::PREFETCH, "07000300 01fb5802");
}

#[test]
fn longest_prefetch_fits_into_a_body() {
    for wanted in [
        Wanted::Indices(vec![i64::MIN; PREFETCH_FRAMES_MAX]),
        Wanted::PlayedAtEach(vec![f64::MAX; PREFETCH_FRAMES_MAX]),
    ] {
        let message = Notice::Prefetch(Prefetch { source: SourceId(u64::MAX), wanted });
        assert!(message.encode().unwrap().len() < 65_536);
    }
}

#[test]
fn ticket_is_not_shown_in_logs() {
    assert_eq!(format!("{:?}", Request::RedeemTicket(ticket())), "RedeemTicket(Ticket(..))");
}

#[test]
fn key_frames() {
    let message = GetKeyFrames { source: SourceId(7), from: 300 };
    assert_golden(&Request::GetKeyFrames(message), kind::GET_KEY_FRAMES, "07fb2c01");
    assert_golden(&Reply::KeyFrames(vec![0, 250, 70_000]), kind::KEY_FRAMES, "0300fafc70110100");
    assert_golden(&Reply::KeyFrames(Vec::new()), kind::KEY_FRAMES, "00");
}

#[test]
fn largest_list_of_key_frames_fits_into_a_body() {
    let message = Reply::KeyFrames(vec![u64::MAX; KEY_FRAMES_PER_REPLY_MAX]);
    assert!(message.encode().unwrap().len() < 65_536);
}

#[test]
fn notices() {
    assert_golden(
        &Notice::Release(vec![LeaseId(1), LeaseId(1 << 33)]),
        kind::RELEASE,
        "0201fd0000000002000000",
    );
    assert_golden(&Notice::CloseSource(SourceId(251)), kind::CLOSE_SOURCE, "fbfb00");
    assert_golden(&Notice::Cancel(9), kind::CANCEL, "09");
    let granted = Notice::ArenaGranted { arena: ArenaId(2), bytes: 4 << 20 };
    assert_golden(&granted, kind::ARENA_GRANTED, "02fc00004000");
    assert_golden(&Notice::ArenaRevoked(ArenaId(2)), kind::ARENA_REVOKED, "02");
}

#[test]
fn error() {
    let message = WireError { code: ErrorCode::NoSlots, is_retryable: true, message: "ü".into() };
    assert_golden(&Reply::Error(message), kind::ERROR, "060102c3bc");
}

#[test]
fn error_codes_keep_their_numbers() {
    let codes = [
        ErrorCode::InvalidRequest,
        ErrorCode::IndexOutOfRange,
        ErrorCode::TimeOutOfRange,
        ErrorCode::Media,
        ErrorCode::SourceChanged,
        ErrorCode::Unsupported,
        ErrorCode::NoSlots,
        ErrorCode::Deadline,
        ErrorCode::Cancelled,
        ErrorCode::DecoderCrashed,
        ErrorCode::ShuttingDown,
        ErrorCode::Internal,
        ErrorCode::LimitReached,
        ErrorCode::FramesLost,
    ];
    assert_eq!(codes, ErrorCode::ALL);
    for (number, code) in codes.into_iter().enumerate() {
        assert_eq!(encode(&code).unwrap(), [number as u8], "{code:?}");
        assert_eq!(decode::<ErrorCode>(&[number as u8]).unwrap(), code);
    }
    assert!(decode::<ErrorCode>(&[codes.len() as u8]).is_err());
}

#[test]
fn activities_keep_their_numbers() {
    let activities = [
        Activity::Starting,
        Activity::Idle,
        Activity::Probing,
        Activity::Scanning,
        Activity::Decoding,
        Activity::Leaving,
    ];
    for (number, activity) in activities.into_iter().enumerate() {
        assert_eq!(encode(&activity).unwrap(), [number as u8], "{activity:?}");
    }
}

#[test]
fn media_types_keep_their_numbers() {
    let types = [
        MediaType::Video,
        MediaType::Audio,
        MediaType::Subtitle,
        MediaType::Data,
        MediaType::Attachment,
        MediaType::Unknown,
    ];
    for (number, media_type) in types.into_iter().enumerate() {
        assert_eq!(encode(&media_type).unwrap(), [number as u8], "{media_type:?}");
    }
}

#[test]
fn frames() {
    let part = PartLayout {
        frame_count: 2,
        height: 180,
        width: 320,
        channels: 3,
        dtype: Dtype::Float32,
        pixels_offset: 0,
        pts_offset: 1_382_400,
        durations_offset: 1_382_416,
    };
    let message = FramesReply {
        lease: LeaseId(5),
        arena: ArenaId(1),
        slot_offset: 8192,
        slot_bytes: 1_384_448,
        parts: vec![part],
    };
    assert_golden(
        &Reply::Frames(message),
        kind::FRAMES,
        "0501fb0020fc002015000102b4fb4001030100fc00181500fc10181500",
    );
}

fn video_stream() -> StreamMetadata {
    StreamMetadata {
        stream_index: StreamIndex(0),
        media_type: MediaType::Video,
        codec: "h264".into(),
        time_base: Rational { numerator: 1, denominator: 12800 },
        bit_rate: 128_000,
        duration_seconds_from_header: Some(2.0),
        begin_stream_seconds_from_header: Some(0.0),
        video: Some(VideoHeader {
            width: 320,
            height: 180,
            num_frames_from_header: Some(50),
            average_fps_from_header: Some(25.0),
            sample_aspect_ratio: Rational { numerator: 1, denominator: 1 },
            rotation_degrees: Some(-90.0),
            color_primaries: None,
            color_space: Some("bt709".into()),
            color_transfer_characteristic: None,
            pixel_format: Some("yuv420p".into()),
            bit_depth: Some(8),
        }),
        audio: None,
    }
}

fn audio_stream() -> StreamMetadata {
    StreamMetadata {
        stream_index: StreamIndex(1),
        media_type: MediaType::Audio,
        codec: "aac".into(),
        time_base: Rational { numerator: 1, denominator: 16000 },
        bit_rate: 0,
        duration_seconds_from_header: None,
        begin_stream_seconds_from_header: None,
        video: None,
        audio: Some(AudioHeader { sample_rate: 16000, num_channels: 1, sample_format: Some("fltp".into()) }),
    }
}

#[test]
fn source_opened() {
    let message = SourceOpened {
        source: SourceId(4),
        stream: StreamIndex(0),
        media: MediaMetadata {
            format: "mov".into(),
            duration_seconds_from_header: Some(2.0),
            bit_rate: Some(200_000),
            best_video_stream: Some(StreamIndex(0)),
            best_audio_stream: None,
            streams: vec![video_stream(), audio_stream()],
        },
        content: Some(ContentMetadata {
            num_frames: 50,
            num_key_frames: 2,
            begin_stream_seconds: 0.0,
            end_stream_seconds: 2.0,
        }),
        effective: EffectiveMetadata {
            num_frames: Some(50),
            average_fps: Some(25.0),
            duration_seconds: Some(2.0),
            begin_stream_seconds: 0.0,
            end_stream_seconds: Some(2.0),
        },
    };
    assert_golden(
        &Reply::SourceOpened(Box::new(message)),
        kind::SOURCE_OPENED,
        "0400036d6f7601000000000000004001fc801a0600010000020000046832363402fb0064fc00e803 \
         0001000000000000004001000000000000000001fb4001b401640100000000000039400202010000 \
         0000008056c00001056274373039000107797576343230700108000101036161 6302fb007d0000000001 \
         fb007d020104666c7470013202000000000000000000000000000000400132010000000000003940 \
         0100000000000000400000000000000000010000000000000040",
    );
}

#[test]
fn status_report() {
    let message = Status {
        version: "0.1.0".into(),
        ffmpeg_versions: vec!["libavcodec 59.37.100".into()],
        pid: 1,
        uptime_seconds: 2,
        client_count: 3,
        lease_count: 4,
        leased_bytes: 5,
        filling_count: 6,
        quarantined_count: 7,
        arena_bytes: 8,
        source_count: 9,
        queued_run_count: 10,
        request_count: 11,
        totals: Totals {
            clients: 20,
            requests: 21,
            requests_failed: 22,
            frames_delivered: 23,
            pictures_decoded: 24,
            samples_skipped: 42,
            cache_hits: 25,
            scans: 26,
            runs: 27,
            joined: 28,
            engine_crashes: 29,
            retries: 30,
            stray_releases: 31,
            engine_restarts: 32,
            results_copied_out: 33,
            bytes_copied_out: 34,
            tickets_issued: 35,
            tickets_redeemed: 36,
            tickets_expired: 37,
            hints_accepted: 38,
            hints_dropped: 39,
            pictures_prefetched: 40,
            prefetch_hits: 41,
            conversion_micros: 43,
            page_faults: 44,
        },
        clients: vec![ClientStatus {
            connection: 40,
            pid: 41,
            uid: 42,
            source_count: 43,
            lease_count: 44,
            leased_bytes: 45,
            arena_bytes: 46,
            request_count: 47,
            name: "py".into(),
            connected_seconds: 48,
            requests_total: 49,
            error_count: 60,
            results_copied_out: 61,
            bytes_copied_out: 62,
            tickets_issued: 63,
            tickets_redeemed: 64,
        }],
        engines: vec![EngineStatus {
            pid: 50,
            uid: 51,
            is_busy: true,
            session_count: 52,
            cache_bytes: 53,
            activity: Activity::Decoding,
            activity_millis: 54,
            label: Some("a.mp4".into()),
            jobs_done: 55,
            uptime_seconds: 56,
        }],
        stuck_helper_count: 60,
        slow_turn_count: 61,
        longest_turn_micros: 62,
        users: vec![UserStatus {
            uid: 60,
            client_count: 61,
            request_count: 62,
            source_count: 63,
            arena_bytes: 64,
            detached_bytes: 65,
            memory_bytes_max: 66,
        }],
        memory_bytes_max: 70,
        detached_bytes: 71,
        is_draining: true,
        queued_pixels: 70,
        cache_bytes: 71,
        errors: vec![ErrorCount { code: "media".into(), count: 72 }],
        log_lines_dropped: 73,
        tickets_outstanding: 74,
        hints_waiting: 75,
    };
    assert_golden(
        &Reply::Status(Box::new(message)),
        kind::STATUS_REPORT,
        "05302e312e3001146c69626176636f6465632035392e33372e3130300102030405060708090a0b14 \
         151617182a191a1b1c1d1e1f202122232425262728292b2c 0128292a2b2c2d2e2f02707930313c3d3e3f40 01323301343504360105612e6d70343738 \
         3c3d3e013c3d3e3f4041424647 01464701056d6564696148494a4b",
    );
}

#[test]
fn kinds_keep_their_numbers() {
    let kinds = [
        (kind::HELLO, 1),
        (kind::WELCOME, 2),
        (kind::REFUSAL, 3),
        (kind::OPEN_SOURCE, 16),
        (kind::GET_FRAMES, 17),
        (kind::STATUS, 18),
        (kind::GET_KEY_FRAMES, 19),
        (kind::ISSUE_TICKET, 20),
        (kind::REDEEM_TICKET, 21),
        (kind::RELEASE, 32),
        (kind::CLOSE_SOURCE, 33),
        (kind::CANCEL, 34),
        (kind::SESSION, 35),
        (kind::COPIED, 36),
        (kind::PREFETCH, 37),
        (kind::ERROR, 64),
        (kind::SOURCE_OPENED, 65),
        (kind::FRAMES, 66),
        (kind::STATUS_REPORT, 67),
        (kind::KEY_FRAMES, 68),
        (kind::TICKET_ISSUED, 69),
        (kind::ARENA_GRANTED, 96),
        (kind::ARENA_REVOKED, 97),
    ];
    for (actual, golden) in kinds {
        assert_eq!(actual, golden);
    }
}

#[test]
fn handshake() {
    let hello = Hello { major: 1, minor_min: 0, minor_max: 2, features: 5, name: "py".into() };
    assert_eq!(hex(&hello.to_bytes()), hex(&bytes("5245454c440d0a01010000000200050000000000000002007079")));
    let welcome = Welcome {
        major: 1,
        minor: 0,
        features: 0,
        instance: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        quota_bytes: 1 << 30,
        requests_max: 64,
        daemon: "reeld 0.1.0".into(),
        ffmpeg: "libavcodec 59".into(),
    };
    assert_eq!(
        hex(&welcome.to_bytes()),
        hex(&bytes(
            "5245454c440d0a01010000000000000000000000100f0e0d0c0b0a09080706050403020100000040 \
         00000000400000000b007265656c6420302e312e300d006c69626176636f646563203539"
        ))
    );
    let refusal = Refusal { major: 2, minor: 1, reason: "no".into(), cause: RefusalCause::Limit };
    assert_eq!(hex(&refusal.to_bytes()), hex(&bytes("5245454c440d0a010200010002006e6f01")));
}
