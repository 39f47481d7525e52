//! The real binary, real processes, real clients: clusters of `evenkeel dev`, each in a directory of its own.
//!
//! Without `EVENKEEL_LONG=1` a representative set runs; with it all do. A test that isn't run isn't in the list, so that
//! none looks green that did not run. Arguments are parts of names; `--list` prints the list. `EVENKEEL_BIN` names another
//! binary than the one just built, `EVENKEEL_KEEP` keeps a failed test's directory.

mod browser;
mod dev;
mod faultfs;
mod nbd;
mod net;
mod prometheus;
mod tools;

mod bit_flip;
mod console;
mod copies;
mod damaged_map;
mod dashboards;
mod deploy;
mod disk_faults;
mod faults;
mod flush_trace;
mod force;
mod frozen;
mod full_fs;
mod gateways;
mod guest;
mod guide;
mod hosts;
mod hung_disk;
mod interface;
mod jobs;
mod kills;
mod knobs;
mod old_disks;
mod overlaps;
mod partitions;
mod pools;
mod ports;
mod power_cut;
mod readers;
mod real_input;
mod refusals;
mod restart;
mod resync;
mod slow_disk;
mod space;
mod top;

use std::process::ExitCode;
use std::time::Instant;

struct Test {
    name: &'static str,
    /// Runs only with `EVENKEEL_LONG=1`.
    long: bool,
    run: fn(),
}

macro_rules! tests {
    ($($when:ident $module:ident::$name:ident;)*) => {
        &[$(Test { name: concat!(stringify!($module), "::", stringify!($name)), long: $when, run: $module::$name }),*]
    };
}

const ALWAYS: bool = false;
const LONG: bool = true;

const TESTS: &[Test] = tests! {
    ALWAYS refusals::commands_name_what_is_wrong;
    ALWAYS refusals::tokens_and_certificates_of_others_are_refused;
    ALWAYS refusals::disks_that_are_not_right_are_refused;
    ALWAYS refusals::a_damaged_map_is_never_taken_for_a_new_one;
    ALWAYS refusals::an_unreachable_coordinator_is_named;
    ALWAYS refusals::garbage_on_the_ports_harms_nothing;
    ALWAYS interface::every_answer_is_as_the_document_says;
    ALWAYS interface::every_command_prints_what_its_schema_says;
    ALWAYS faultfs::the_file_system_of_these_tests_loses_what_it_should;
    ALWAYS disk_faults::a_failed_fsync_takes_the_disk_out_for_good;
    LONG disk_faults::fsyncs_that_always_fail_take_the_disk_out_for_good;
    LONG disk_faults::a_failed_write_takes_the_disk_out_for_good;
    LONG disk_faults::a_disk_that_takes_no_mark_stays_out;
    LONG disk_faults::short_writes_lose_nothing;
    ALWAYS ports::a_node_uses_the_ports_it_was_given_and_no_others;
    ALWAYS power_cut::one_node_loses_what_was_not_synced;
    LONG power_cut::all_nodes_lose_what_was_not_synced;
    LONG power_cut::the_whole_cluster_loses_what_was_not_synced;
    LONG power_cut::the_coordinator_keeps_what_it_said;
    ALWAYS flush_trace::an_acked_flush_follows_an_fdatasync_on_every_copy;
    LONG full_fs::one_full_file_system_stalls_writes_until_there_is_space;
    LONG full_fs::full_file_systems_stall_writes_until_there_is_space;
    ALWAYS damaged_map::an_older_copy_is_not_taken_for_the_map;
    LONG damaged_map::every_damage_is_refused_and_undone_by_a_saved_copy;
    ALWAYS old_disks::swapped_slots_are_never_served;
    LONG old_disks::swapped_data_is_never_served;
    LONG old_disks::swapped_headers_are_never_served;
    LONG old_disks::an_old_copy_of_one_node_catches_up;
    LONG old_disks::an_old_copy_of_a_primary_is_not_taken_for_current;
    LONG old_disks::an_old_copy_of_a_secondary_is_not_taken_for_current;
    LONG old_disks::a_wiped_disk_is_never_counted;
    ALWAYS bit_flip::a_flipped_byte_is_repaired_and_counted;
    ALWAYS space::deleting_a_volume_lets_stalled_writes_go_on;
    LONG space::a_new_node_lets_stalled_writes_go_on;
    ALWAYS resync::a_killed_target_resumes;
    LONG resync::a_killed_source_resumes;
    LONG resync::a_killed_coordinator_resumes;
    ALWAYS resync::the_cap_holds_and_none_removes_it;
    ALWAYS resync::a_paused_class_waits_and_settings_last;
    ALWAYS knobs::settings_act_at_once_name_their_origin_and_last;
    ALWAYS knobs::a_paused_pool_or_node_takes_no_copies;
    ALWAYS knobs::a_deadline_raises_the_floor_as_far_as_the_cap_allows;
    ALWAYS knobs::a_volumes_limits_hold_live_in_its_gateway;
    ALWAYS knobs::shares_hold_between_volumes;
    ALWAYS jobs::a_job_is_paused_cancelled_and_asked_for_again;
    ALWAYS jobs::a_repair_is_not_cancelled;
    ALWAYS jobs::a_volumes_redundancy_is_shown;
    ALWAYS pools::copies_domain_and_class_change_online;
    ALWAYS pools::fewer_copies_free_their_space;
    ALWAYS pools::ok_to_stop_tells_which_nodes_may_go;
    LONG pools::what_lacks_is_told_by_domain;
    ALWAYS restart::a_clean_stop_costs_nothing;
    ALWAYS restart::all_members_killed_at_once_come_back;
    ALWAYS faults::a_killed_primary_returns_by_difference;
    ALWAYS faults::a_killed_gateway_returns_under_its_name;
    ALWAYS faults::io_goes_on_without_the_coordinator;
    ALWAYS force::the_last_copy_serves_when_the_operator_says_so;
    LONG slow_disk::a_slow_disk_gets_one_move_and_the_others_go_on;
    LONG hung_disk::io_goes_on_without_a_disk_that_hangs;
    ALWAYS kills::a_killed_secondary_returns;
    LONG kills::a_killed_gateways_client_connects_again;
    ALWAYS kills::all_but_the_gateway_killed_at_once;
    ALWAYS kills::everything_killed_at_once;
    ALWAYS frozen::a_primary_frozen_for_2_s;
    LONG frozen::a_secondary_frozen_for_30_s;
    ALWAYS partitions::a_primary_cut_off_from_all;
    LONG partitions::a_primary_that_only_its_gateway_reaches;
    LONG partitions::the_coordinator_cut_off;
    LONG partitions::a_cut_one_way;
    LONG partitions::lost_packets_remove_nobody;
    LONG overlaps::a_node_restarts_in_a_loop_during_a_rebalance;
    LONG overlaps::a_second_node_dies_during_the_repair;
    LONG overlaps::a_join_and_a_drain_while_a_node_is_down;
    ALWAYS gateways::the_second_stands_by_until_the_first_stops;
    ALWAYS gateways::a_load_moves_to_the_standby;
    ALWAYS gateways::take_over_fences_the_first;
    LONG gateways::a_gateway_stops_without_its_cluster;
    ALWAYS guest::a_guest_writes_while_nodes_come_and_go;
    LONG guest::a_guest_lives_through_a_long_stall;
    ALWAYS dashboards::dashboards_are_well_formed;
    ALWAYS dashboards::the_rules_hold;
    ALWAYS dashboards::runbooks_name_commands_that_exist;
    ALWAYS dashboards::every_panel_shows_something;
    ALWAYS top::an_operator_watches_on_a_narrow_terminal;
    ALWAYS console::an_operator_watches_a_rebalance_and_a_loss;
    ALWAYS console::an_operator_drains_a_node;
    ALWAYS readers::beyond_loopback_only_known_readers_read;
    ALWAYS deploy::units_are_sound;
    ALWAYS deploy::daemons_live_within_their_units;
    ALWAYS deploy::containers_make_a_cluster;
    ALWAYS deploy::guests_open_their_disk;
    LONG deploy::the_package_installs_runs_upgrades_and_goes;
    ALWAYS hosts::a_guest_outlives_a_pulled_cable_behind_firewalls;
    ALWAYS hosts::a_start_that_fails_leaves_nothing;
    ALWAYS guide::its_commands_do_what_it_says;
    ALWAYS console::what_foreign_pages_ask_for_is_refused;
    ALWAYS real_input::a_file_system_survives_a_join_and_a_kill;
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let long = std::env::var_os("EVENKEEL_LONG").is_some_and(|value| value == "1");
    let chosen = TESTS.iter().filter(|test| long || !test.long);
    let chosen: Vec<&Test> = chosen
        .filter(|test| wanted.is_empty() || wanted.iter().any(|part| test.name.contains(part.as_str())))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|test| println!("{}: test", test.name));
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for test in &chosen {
        println!("test {} ...", test.name);
        let begin = Instant::now();
        // A thread of its own, named, so that a panic says which test it was.
        let thread = std::thread::Builder::new().name(test.name.to_owned()).spawn(test.run).expect("starts a thread");
        let passed = thread.join().is_ok();
        println!(
            "test {} ... {} ({:.1} s)",
            test.name,
            if passed { "ok" } else { "FAILED" },
            begin.elapsed().as_secs_f64()
        );
        if !passed {
            failed.push(test.name);
        }
    }
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!("{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
