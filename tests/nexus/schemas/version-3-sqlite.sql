CREATE TABLE access_token (
    id TEXT NOT NULL CONSTRAINT access_token_id_is_an_id CHECK (length(id) = 36),
    digest TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT access_token_role_is_known CHECK (role IN ('tenant', 'operator')),
    project_id TEXT CONSTRAINT access_token_project_id_is_an_id CHECK (length(project_id) = 36),
    time_created TEXT NOT NULL,
    time_expires TEXT,
    time_revoked TEXT,
    CONSTRAINT access_token_pkey PRIMARY KEY (id),
    CONSTRAINT access_token_a_tenant_has_a_project CHECK ((role = 'tenant') = (project_id IS NOT NULL))
)
 STRICT;

CREATE INDEX access_token_by_project ON access_token (project_id) WHERE project_id IS NOT NULL;

CREATE UNIQUE INDEX access_token_digest_unique ON access_token (digest);

CREATE TABLE clone_source_refusal (
    request_id TEXT NOT NULL CONSTRAINT clone_source_refusal_request_id_is_an_id CHECK (length(request_id) = 36),
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    time_refused TEXT NOT NULL,
    CONSTRAINT clone_source_refusal_pkey PRIMARY KEY (request_id, source)
)
 STRICT;

CREATE TABLE crucible_dataset (
    id TEXT NOT NULL CONSTRAINT crucible_dataset_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT crucible_dataset_rcgen_is_in_range CHECK (rcgen >= 1),
    pool_id TEXT NOT NULL CONSTRAINT crucible_dataset_pool_id_is_an_id CHECK (length(pool_id) = 36),
    ip TEXT NOT NULL CONSTRAINT crucible_dataset_ip_is_ipv6 CHECK (ip LIKE '%:%' AND ip NOT LIKE '%[%'),
    port INTEGER NOT NULL CONSTRAINT crucible_dataset_port_is_in_range CHECK (port >= 1 AND port <= 65535),
    size_used INTEGER NOT NULL CONSTRAINT crucible_dataset_size_used_is_in_range CHECK (size_used >= 0),
    no_provision INTEGER NOT NULL CONSTRAINT crucible_dataset_no_provision_is_yes_or_no CHECK (no_provision IN (FALSE, TRUE)),
    CONSTRAINT crucible_dataset_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE UNIQUE INDEX crucible_dataset_agent_unique ON crucible_dataset (ip, port) WHERE time_deleted IS NULL;

CREATE INDEX crucible_dataset_by_ip ON crucible_dataset (ip);

CREATE UNIQUE INDEX crucible_dataset_by_pool ON crucible_dataset (pool_id, id) WHERE time_deleted IS NULL;

CREATE INDEX crucible_dataset_by_size_used ON crucible_dataset (size_used) WHERE time_deleted IS NULL;

CREATE TABLE disk (
    id TEXT NOT NULL CONSTRAINT disk_id_is_an_id CHECK (length(id) = 36),
    project_id TEXT NOT NULL CONSTRAINT disk_project_id_is_an_id CHECK (length(project_id) = 36),
    name TEXT NOT NULL CONSTRAINT disk_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT disk_rcgen_is_in_range CHECK (rcgen >= 1),
    disk_state TEXT NOT NULL CONSTRAINT disk_disk_state_is_known CHECK (disk_state IN ('creating', 'detached', 'import_ready', 'importing_from_url', 'importing_from_bulk_writes', 'finalizing', 'maintenance', 'attaching', 'attached', 'detaching', 'destroyed', 'faulted')),
    attach_instance_id TEXT CONSTRAINT disk_attach_instance_id_is_an_id CHECK (length(attach_instance_id) = 36),
    state_generation INTEGER DEFAULT '1' NOT NULL CONSTRAINT disk_state_generation_is_in_range CHECK (state_generation >= 1),
    slot INTEGER CONSTRAINT disk_slot_is_in_range CHECK (slot >= 0 AND slot <= 11),
    time_state_updated TEXT NOT NULL,
    operating_saga_id TEXT CONSTRAINT disk_operating_saga_id_is_an_id CHECK (length(operating_saga_id) = 36),
    size_bytes INTEGER NOT NULL CONSTRAINT disk_size_bytes_is_in_range CHECK (size_bytes >= 1),
    block_size INTEGER NOT NULL CONSTRAINT disk_block_size_is_known CHECK (block_size IN (512, 2048, 4096)),
    disk_type TEXT NOT NULL CONSTRAINT disk_disk_type_is_known CHECK (disk_type IN ('crucible', 'local_storage')),
    CONSTRAINT disk_pkey PRIMARY KEY (id),
    CONSTRAINT disk_size_is_whole_blocks CHECK (size_bytes % block_size = 0),
    CONSTRAINT disk_attached_names_its_instance CHECK (NOT (disk_state IN ('attaching', 'attached', 'detaching')) OR attach_instance_id IS NOT NULL),
    CONSTRAINT disk_at_rest_names_no_instance CHECK (disk_state IN ('attaching', 'attached', 'detaching', 'faulted') OR attach_instance_id IS NULL),
    CONSTRAINT disk_a_slot_is_an_instances CHECK (slot IS NULL OR attach_instance_id IS NOT NULL),
    CONSTRAINT disk_deleted_is_destroyed CHECK (time_deleted IS NULL OR disk_state = 'destroyed')
)
 STRICT;

CREATE UNIQUE INDEX disk_attached_unique ON disk (attach_instance_id, id) WHERE attach_instance_id IS NOT NULL AND time_deleted IS NULL;

CREATE INDEX disk_by_project ON disk (project_id, id) WHERE time_deleted IS NULL;

CREATE INDEX disk_deleted ON disk (time_deleted, id) WHERE time_deleted IS NOT NULL;

CREATE UNIQUE INDEX disk_name_unique ON disk (project_id, name) WHERE time_deleted IS NULL;

CREATE UNIQUE INDEX disk_slot_unique ON disk (attach_instance_id, slot) WHERE attach_instance_id IS NOT NULL AND time_deleted IS NULL;

CREATE TABLE disk_type_crucible (
    disk_id TEXT NOT NULL CONSTRAINT disk_type_crucible_disk_id_is_an_id CHECK (length(disk_id) = 36),
    volume_id TEXT NOT NULL CONSTRAINT disk_type_crucible_volume_id_is_an_id CHECK (length(volume_id) = 36),
    origin_snapshot TEXT CONSTRAINT disk_type_crucible_origin_snapshot_is_an_id CHECK (length(origin_snapshot) = 36),
    origin_image TEXT CONSTRAINT disk_type_crucible_origin_image_is_an_id CHECK (length(origin_image) = 36),
    pantry_address TEXT CONSTRAINT disk_type_crucible_pantry_address_is_an_address CHECK (pantry_address LIKE '[%:%]:%'),
    read_only INTEGER NOT NULL CONSTRAINT disk_type_crucible_read_only_is_yes_or_no CHECK (read_only IN (FALSE, TRUE)),
    CONSTRAINT disk_type_crucible_pkey PRIMARY KEY (disk_id),
    CONSTRAINT disk_type_crucible_one_origin CHECK (origin_snapshot IS NULL OR origin_image IS NULL)
)
 STRICT;

CREATE INDEX disk_type_crucible_by_image ON disk_type_crucible (origin_image) WHERE origin_image IS NOT NULL;

CREATE INDEX disk_type_crucible_by_snapshot ON disk_type_crucible (origin_snapshot) WHERE origin_snapshot IS NOT NULL;

CREATE UNIQUE INDEX disk_type_crucible_volume_unique ON disk_type_crucible (volume_id);

CREATE TABLE downstairs_client_stop_request_notification (
    time TEXT NOT NULL,
    upstairs_id TEXT NOT NULL CONSTRAINT downstairs_client_stop_request_notification_upstairs_id_is_an_id CHECK (length(upstairs_id) = 36),
    downstairs_id TEXT NOT NULL CONSTRAINT downstairs_client_stop_request_notification_downstairs_id_is_an_id CHECK (length(downstairs_id) = 36),
    reason TEXT NOT NULL CONSTRAINT downstairs_client_stop_request_notification_reason_is_known CHECK (reason IN ('replacing', 'disabled', 'failed_reconcile', 'io_error', 'bad_negotiation_order', 'incompatible', 'failed_live_repair', 'too_many_outstanding_jobs', 'deactivated')),
    CONSTRAINT downstairs_client_stop_request_notification_pkey PRIMARY KEY (time, upstairs_id, downstairs_id, reason)
)
 STRICT;

CREATE TABLE downstairs_client_stopped_notification (
    time TEXT NOT NULL,
    upstairs_id TEXT NOT NULL CONSTRAINT downstairs_client_stopped_notification_upstairs_id_is_an_id CHECK (length(upstairs_id) = 36),
    downstairs_id TEXT NOT NULL CONSTRAINT downstairs_client_stopped_notification_downstairs_id_is_an_id CHECK (length(downstairs_id) = 36),
    reason TEXT NOT NULL CONSTRAINT downstairs_client_stopped_notification_reason_is_known CHECK (reason IN ('connection_timeout', 'connection_failed', 'timeout', 'write_failed', 'read_failed', 'requested_stop', 'finished', 'queue_closed', 'receive_task_cancelled')),
    CONSTRAINT downstairs_client_stopped_notification_pkey PRIMARY KEY (time, upstairs_id, downstairs_id, reason)
)
 STRICT;

CREATE TABLE image (
    id TEXT NOT NULL CONSTRAINT image_id_is_an_id CHECK (length(id) = 36),
    silo_id TEXT NOT NULL CONSTRAINT image_silo_id_is_an_id CHECK (length(silo_id) = 36),
    project_id TEXT CONSTRAINT image_project_id_is_an_id CHECK (length(project_id) = 36),
    name TEXT NOT NULL CONSTRAINT image_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    volume_id TEXT NOT NULL CONSTRAINT image_volume_id_is_an_id CHECK (length(volume_id) = 36),
    url TEXT,
    os TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT,
    block_size INTEGER NOT NULL CONSTRAINT image_block_size_is_known CHECK (block_size IN (512, 2048, 4096)),
    size_bytes INTEGER NOT NULL CONSTRAINT image_size_bytes_is_in_range CHECK (size_bytes >= 1),
    CONSTRAINT image_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX image_by_project ON image (project_id, id) WHERE time_deleted IS NULL;

CREATE INDEX image_by_volume ON image (volume_id);

CREATE UNIQUE INDEX image_project_name_unique ON image (silo_id, project_id, name) WHERE project_id IS NOT NULL AND time_deleted IS NULL;

CREATE UNIQUE INDEX image_silo_name_unique ON image (silo_id, name) WHERE project_id IS NULL AND time_deleted IS NULL;

CREATE TABLE instance (
    id TEXT NOT NULL CONSTRAINT instance_id_is_an_id CHECK (length(id) = 36),
    project_id TEXT NOT NULL CONSTRAINT instance_project_id_is_an_id CHECK (length(project_id) = 36),
    name TEXT NOT NULL CONSTRAINT instance_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    active_propolis_id TEXT CONSTRAINT instance_active_propolis_id_is_an_id CHECK (length(active_propolis_id) = 36),
    target_propolis_id TEXT CONSTRAINT instance_target_propolis_id_is_an_id CHECK (length(target_propolis_id) = 36),
    migration_id TEXT CONSTRAINT instance_migration_id_is_an_id CHECK (length(migration_id) = 36),
    state_generation INTEGER DEFAULT '1' NOT NULL CONSTRAINT instance_state_generation_is_in_range CHECK (state_generation >= 1),
    CONSTRAINT instance_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX instance_by_project ON instance (project_id, id) WHERE time_deleted IS NULL;

CREATE UNIQUE INDEX instance_name_unique ON instance (project_id, name) WHERE time_deleted IS NULL;

CREATE TABLE inv_zpool (
    id TEXT NOT NULL CONSTRAINT inv_zpool_id_is_an_id CHECK (length(id) = 36),
    time_collected TEXT NOT NULL,
    sled_id TEXT NOT NULL CONSTRAINT inv_zpool_sled_id_is_an_id CHECK (length(sled_id) = 36),
    total_size INTEGER NOT NULL CONSTRAINT inv_zpool_total_size_is_in_range CHECK (total_size >= 0),
    CONSTRAINT inv_zpool_pkey PRIMARY KEY (id, time_collected)
)
 STRICT;

CREATE TABLE nexus_instance (
    id TEXT NOT NULL,
    time_started TEXT NOT NULL,
    time_heartbeat TEXT NOT NULL,
    time_expires TEXT NOT NULL,
    CONSTRAINT nexus_instance_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX nexus_instance_by_expiry ON nexus_instance (time_expires);

CREATE TABLE pantry (
    id TEXT NOT NULL CONSTRAINT pantry_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    sled_id TEXT NOT NULL CONSTRAINT pantry_sled_id_is_an_id CHECK (length(sled_id) = 36),
    ip TEXT NOT NULL CONSTRAINT pantry_ip_is_ipv6 CHECK (ip LIKE '%:%' AND ip NOT LIKE '%[%'),
    port INTEGER NOT NULL CONSTRAINT pantry_port_is_in_range CHECK (port >= 1 AND port <= 65535),
    CONSTRAINT pantry_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE UNIQUE INDEX pantry_address_unique ON pantry (ip, port) WHERE time_deleted IS NULL;

CREATE INDEX pantry_by_sled ON pantry (sled_id) WHERE time_deleted IS NULL;

CREATE TABLE physical_disk (
    id TEXT NOT NULL CONSTRAINT physical_disk_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT physical_disk_rcgen_is_in_range CHECK (rcgen >= 1),
    vendor TEXT NOT NULL,
    serial TEXT NOT NULL,
    model TEXT NOT NULL,
    variant TEXT NOT NULL CONSTRAINT physical_disk_variant_is_known CHECK (variant IN ('u2')),
    sled_id TEXT NOT NULL CONSTRAINT physical_disk_sled_id_is_an_id CHECK (length(sled_id) = 36),
    disk_policy TEXT NOT NULL CONSTRAINT physical_disk_disk_policy_is_known CHECK (disk_policy IN ('in_service', 'expunged')),
    disk_state TEXT NOT NULL CONSTRAINT physical_disk_disk_state_is_known CHECK (disk_state IN ('active', 'decommissioned')),
    CONSTRAINT physical_disk_pkey PRIMARY KEY (id),
    CONSTRAINT physical_disk_decommissioned_is_expunged CHECK (disk_state <> 'decommissioned' OR disk_policy = 'expunged')
)
 STRICT;

CREATE INDEX physical_disk_by_policy ON physical_disk (disk_policy, id);

CREATE INDEX physical_disk_by_sled ON physical_disk (sled_id) WHERE time_deleted IS NULL;

CREATE UNIQUE INDEX physical_disk_hardware_unique ON physical_disk (vendor, serial, model) WHERE time_deleted IS NULL AND disk_state <> 'decommissioned';

CREATE TABLE project (
    id TEXT NOT NULL CONSTRAINT project_id_is_an_id CHECK (length(id) = 36),
    silo_id TEXT NOT NULL CONSTRAINT project_silo_id_is_an_id CHECK (length(silo_id) = 36),
    name TEXT NOT NULL CONSTRAINT project_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT project_rcgen_is_in_range CHECK (rcgen >= 1),
    CONSTRAINT project_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE UNIQUE INDEX project_name_unique ON project (silo_id, name) WHERE time_deleted IS NULL;

CREATE TABLE region (
    id TEXT NOT NULL CONSTRAINT region_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    dataset_id TEXT NOT NULL CONSTRAINT region_dataset_id_is_an_id CHECK (length(dataset_id) = 36),
    volume_id TEXT NOT NULL CONSTRAINT region_volume_id_is_an_id CHECK (length(volume_id) = 36),
    block_size INTEGER NOT NULL CONSTRAINT region_block_size_is_known CHECK (block_size IN (512, 2048, 4096)),
    blocks_per_extent INTEGER NOT NULL CONSTRAINT region_blocks_per_extent_is_in_range CHECK (blocks_per_extent >= 1),
    extent_count INTEGER NOT NULL CONSTRAINT region_extent_count_is_in_range CHECK (extent_count >= 0),
    port INTEGER CONSTRAINT region_port_is_in_range CHECK (port >= 1 AND port <= 65535),
    read_only INTEGER NOT NULL CONSTRAINT region_read_only_is_yes_or_no CHECK (read_only IN (FALSE, TRUE)),
    deleting INTEGER NOT NULL CONSTRAINT region_deleting_is_yes_or_no CHECK (deleting IN (FALSE, TRUE)),
    reservation_percent TEXT NOT NULL CONSTRAINT region_reservation_percent_is_known CHECK (reservation_percent IN ('25')),
    CONSTRAINT region_pkey PRIMARY KEY (id),
    CONSTRAINT region_only_read_only_regions_are_marked_deleting CHECK (deleting <= read_only)
)
 STRICT;

CREATE INDEX region_by_address ON region (dataset_id, port);

CREATE UNIQUE INDEX region_by_dataset ON region (dataset_id, id);

CREATE UNIQUE INDEX region_by_volume ON region (volume_id, id);

CREATE INDEX region_deleting ON region (id) WHERE deleting = 1;

CREATE INDEX region_read_only ON region (id) WHERE read_only = 1;

CREATE INDEX region_without_port ON region (id) WHERE port IS NULL;

CREATE TABLE region_replacement (
    id TEXT NOT NULL CONSTRAINT region_replacement_id_is_an_id CHECK (length(id) = 36),
    request_time TEXT NOT NULL,
    old_region_id TEXT NOT NULL CONSTRAINT region_replacement_old_region_id_is_an_id CHECK (length(old_region_id) = 36),
    volume_id TEXT NOT NULL CONSTRAINT region_replacement_volume_id_is_an_id CHECK (length(volume_id) = 36),
    old_region_volume_id TEXT CONSTRAINT region_replacement_old_region_volume_id_is_an_id CHECK (length(old_region_volume_id) = 36),
    new_region_id TEXT CONSTRAINT region_replacement_new_region_id_is_an_id CHECK (length(new_region_id) = 36),
    replacement_state TEXT NOT NULL CONSTRAINT region_replacement_replacement_state_is_known CHECK (replacement_state IN ('requested', 'allocating', 'running', 'driving', 'replacement_done', 'completing', 'complete')),
    operating_saga_id TEXT CONSTRAINT region_replacement_operating_saga_id_is_an_id CHECK (length(operating_saga_id) = 36),
    CONSTRAINT region_replacement_pkey PRIMARY KEY (id),
    CONSTRAINT region_replacement_held_while_intermediate CHECK ((replacement_state IN ('allocating', 'driving', 'completing')) = (operating_saga_id IS NOT NULL)),
    CONSTRAINT region_replacement_nothing_new_while_requested CHECK (replacement_state <> 'requested' OR (old_region_volume_id IS NULL AND new_region_id IS NULL)),
    CONSTRAINT region_replacement_successor_known_from_running_on CHECK (NOT (replacement_state IN ('running', 'driving', 'replacement_done', 'completing')) OR (old_region_volume_id IS NOT NULL AND new_region_id IS NOT NULL))
)
 STRICT;

CREATE UNIQUE INDEX region_replacement_active_unique ON region_replacement (old_region_id) WHERE replacement_state <> 'complete';

CREATE INDEX region_replacement_by_new_region ON region_replacement (new_region_id) WHERE new_region_id IS NOT NULL;

CREATE INDEX region_replacement_by_old_region ON region_replacement (old_region_id);

CREATE INDEX region_replacement_by_state ON region_replacement (replacement_state, id);

CREATE INDEX region_replacement_by_volume ON region_replacement (volume_id);

CREATE UNIQUE INDEX region_replacement_operated ON region_replacement (operating_saga_id) WHERE operating_saga_id IS NOT NULL;

CREATE TABLE region_replacement_step (
    replacement_id TEXT NOT NULL CONSTRAINT region_replacement_step_replacement_id_is_an_id CHECK (length(replacement_id) = 36),
    step_time TEXT NOT NULL,
    step_type TEXT NOT NULL CONSTRAINT region_replacement_step_step_type_is_known CHECK (step_type IN ('propolis', 'pantry')),
    step_associated_instance_id TEXT CONSTRAINT region_replacement_step_step_associated_instance_id_is_an_id CHECK (length(step_associated_instance_id) = 36),
    step_associated_vmm_id TEXT CONSTRAINT region_replacement_step_step_associated_vmm_id_is_an_id CHECK (length(step_associated_vmm_id) = 36),
    step_associated_pantry_ip TEXT CONSTRAINT region_replacement_step_step_associated_pantry_ip_is_ipv6 CHECK (step_associated_pantry_ip LIKE '%:%' AND step_associated_pantry_ip NOT LIKE '%[%'),
    step_associated_pantry_port INTEGER CONSTRAINT region_replacement_step_step_associated_pantry_port_is_in_range CHECK (step_associated_pantry_port >= 1 AND step_associated_pantry_port <= 65535),
    step_associated_pantry_job_id TEXT CONSTRAINT region_replacement_step_step_associated_pantry_job_id_is_an_id CHECK (length(step_associated_pantry_job_id) = 36),
    CONSTRAINT region_replacement_step_pkey PRIMARY KEY (replacement_id, step_time, step_type),
    CONSTRAINT region_replacement_step_a_step_says_who CHECK ((step_type = 'propolis' AND step_associated_instance_id IS NOT NULL AND step_associated_vmm_id IS NOT NULL) OR (step_type = 'pantry' AND step_associated_pantry_ip IS NOT NULL AND step_associated_pantry_port IS NOT NULL AND step_associated_pantry_job_id IS NOT NULL))
)
 STRICT;

CREATE TABLE region_snapshot (
    dataset_id TEXT NOT NULL CONSTRAINT region_snapshot_dataset_id_is_an_id CHECK (length(dataset_id) = 36),
    region_id TEXT NOT NULL CONSTRAINT region_snapshot_region_id_is_an_id CHECK (length(region_id) = 36),
    snapshot_id TEXT NOT NULL CONSTRAINT region_snapshot_snapshot_id_is_an_id CHECK (length(snapshot_id) = 36),
    snapshot_addr TEXT NOT NULL CONSTRAINT region_snapshot_snapshot_addr_is_an_address CHECK (snapshot_addr LIKE '[%:%]:%'),
    volume_references INTEGER DEFAULT '0' NOT NULL CONSTRAINT region_snapshot_volume_references_is_in_range CHECK (volume_references >= 0),
    deleting INTEGER NOT NULL CONSTRAINT region_snapshot_deleting_is_yes_or_no CHECK (deleting IN (FALSE, TRUE)),
    CONSTRAINT region_snapshot_pkey PRIMARY KEY (dataset_id, region_id, snapshot_id)
)
 STRICT;

CREATE UNIQUE INDEX region_snapshot_address_in_use_unique ON region_snapshot (snapshot_addr) WHERE deleting = 0;

CREATE INDEX region_snapshot_by_address ON region_snapshot (snapshot_addr);

CREATE INDEX region_snapshot_by_dataset_and_region ON region_snapshot (dataset_id, region_id);

CREATE INDEX region_snapshot_by_region ON region_snapshot (region_id);

CREATE INDEX region_snapshot_by_snapshot ON region_snapshot (snapshot_id);

CREATE INDEX region_snapshot_deleting ON region_snapshot (region_id) WHERE deleting = 1;

CREATE TABLE region_snapshot_replacement (
    id TEXT NOT NULL CONSTRAINT region_snapshot_replacement_id_is_an_id CHECK (length(id) = 36),
    request_time TEXT NOT NULL,
    replacement_type TEXT NOT NULL CONSTRAINT region_snapshot_replacement_replacement_type_is_known CHECK (replacement_type IN ('region_snapshot', 'read_only_region')),
    old_dataset_id TEXT CONSTRAINT region_snapshot_replacement_old_dataset_id_is_an_id CHECK (length(old_dataset_id) = 36),
    old_region_id TEXT NOT NULL CONSTRAINT region_snapshot_replacement_old_region_id_is_an_id CHECK (length(old_region_id) = 36),
    old_snapshot_id TEXT CONSTRAINT region_snapshot_replacement_old_snapshot_id_is_an_id CHECK (length(old_snapshot_id) = 36),
    old_snapshot_volume_id TEXT CONSTRAINT region_snapshot_replacement_old_snapshot_volume_id_is_an_id CHECK (length(old_snapshot_volume_id) = 36),
    new_region_id TEXT CONSTRAINT region_snapshot_replacement_new_region_id_is_an_id CHECK (length(new_region_id) = 36),
    new_region_volume_id TEXT CONSTRAINT region_snapshot_replacement_new_region_volume_id_is_an_id CHECK (length(new_region_volume_id) = 36),
    replacement_state TEXT NOT NULL CONSTRAINT region_snapshot_replacement_replacement_state_is_known CHECK (replacement_state IN ('requested', 'allocating', 'replacement_done', 'deleting_old_volume', 'running', 'completing', 'complete')),
    operating_saga_id TEXT CONSTRAINT region_snapshot_replacement_operating_saga_id_is_an_id CHECK (length(operating_saga_id) = 36),
    CONSTRAINT region_snapshot_replacement_pkey PRIMARY KEY (id),
    CONSTRAINT region_snapshot_replacement_proper_replacement_fields CHECK ((replacement_type = 'region_snapshot' AND old_dataset_id IS NOT NULL AND old_snapshot_id IS NOT NULL) OR (replacement_type = 'read_only_region' AND old_dataset_id IS NULL AND old_snapshot_id IS NULL)),
    CONSTRAINT region_snapshot_replacement_held_while_intermediate CHECK ((replacement_state IN ('allocating', 'deleting_old_volume', 'completing')) = (operating_saga_id IS NOT NULL)),
    CONSTRAINT region_snapshot_replacement_nothing_new_while_requested CHECK (replacement_state <> 'requested' OR (old_snapshot_volume_id IS NULL AND new_region_id IS NULL AND new_region_volume_id IS NULL)),
    CONSTRAINT region_snapshot_replacement_successor_known_from_done_on CHECK (NOT (replacement_state IN ('replacement_done', 'deleting_old_volume', 'running', 'completing')) OR (old_snapshot_volume_id IS NOT NULL AND new_region_id IS NOT NULL AND new_region_volume_id IS NOT NULL))
)
 STRICT;

CREATE INDEX region_snapshot_replacement_by_new_region ON region_snapshot_replacement (new_region_id) WHERE new_region_id IS NOT NULL;

CREATE INDEX region_snapshot_replacement_by_state ON region_snapshot_replacement (replacement_state, id);

CREATE INDEX region_snapshot_replacement_by_target ON region_snapshot_replacement (old_region_id, old_dataset_id, old_snapshot_id);

CREATE UNIQUE INDEX region_snapshot_replacement_operated ON region_snapshot_replacement (operating_saga_id) WHERE operating_saga_id IS NOT NULL;

CREATE UNIQUE INDEX region_snapshot_replacement_region_unique ON region_snapshot_replacement (old_region_id) WHERE replacement_type = 'read_only_region' AND replacement_state <> 'complete';

CREATE UNIQUE INDEX region_snapshot_replacement_snapshot_unique ON region_snapshot_replacement (old_dataset_id, old_region_id, old_snapshot_id) WHERE replacement_type = 'region_snapshot' AND replacement_state <> 'complete';

CREATE TABLE region_snapshot_replacement_step (
    id TEXT NOT NULL CONSTRAINT region_snapshot_replacement_step_id_is_an_id CHECK (length(id) = 36),
    request_id TEXT NOT NULL CONSTRAINT region_snapshot_replacement_step_request_id_is_an_id CHECK (length(request_id) = 36),
    request_time TEXT NOT NULL,
    volume_id TEXT NOT NULL CONSTRAINT region_snapshot_replacement_step_volume_id_is_an_id CHECK (length(volume_id) = 36),
    old_snapshot_volume_id TEXT CONSTRAINT region_snapshot_replacement_step_old_snapshot_volume_id_is_an_id CHECK (length(old_snapshot_volume_id) = 36),
    replacement_state TEXT NOT NULL CONSTRAINT region_snapshot_replacement_step_replacement_state_is_known CHECK (replacement_state IN ('requested', 'running', 'complete', 'volume_deleted')),
    operating_saga_id TEXT CONSTRAINT region_snapshot_replacement_step_operating_saga_id_is_an_id CHECK (length(operating_saga_id) = 36),
    CONSTRAINT region_snapshot_replacement_step_pkey PRIMARY KEY (id),
    CONSTRAINT region_snapshot_replacement_step_held_while_intermediate CHECK ((replacement_state IN ('running')) = (operating_saga_id IS NOT NULL)),
    CONSTRAINT region_snapshot_replacement_step_no_stash_while_requested CHECK (replacement_state <> 'requested' OR old_snapshot_volume_id IS NULL),
    CONSTRAINT region_snapshot_replacement_step_stash_known_when_complete CHECK (replacement_state <> 'complete' OR old_snapshot_volume_id IS NOT NULL)
)
 STRICT;

CREATE UNIQUE INDEX region_snapshot_replacement_step_active_unique ON region_snapshot_replacement_step (volume_id) WHERE replacement_state IN ('requested', 'running');

CREATE INDEX region_snapshot_replacement_step_by_request ON region_snapshot_replacement_step (request_id, replacement_state);

CREATE INDEX region_snapshot_replacement_step_by_state ON region_snapshot_replacement_step (replacement_state, id);

CREATE INDEX region_snapshot_replacement_step_by_volume ON region_snapshot_replacement_step (volume_id);

CREATE UNIQUE INDEX region_snapshot_replacement_step_operated ON region_snapshot_replacement_step (operating_saga_id) WHERE operating_saga_id IS NOT NULL;

CREATE UNIQUE INDEX region_snapshot_replacement_step_stash_unique ON region_snapshot_replacement_step (old_snapshot_volume_id) WHERE old_snapshot_volume_id IS NOT NULL;

CREATE TABLE replacement_waiting (
    request_id TEXT NOT NULL CONSTRAINT replacement_waiting_request_id_is_an_id CHECK (length(request_id) = 36),
    reason TEXT NOT NULL,
    time_since TEXT NOT NULL,
    CONSTRAINT replacement_waiting_pkey PRIMARY KEY (request_id)
)
 STRICT;

CREATE TABLE saga (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    params TEXT NOT NULL,
    labels TEXT NOT NULL,
    state TEXT NOT NULL CONSTRAINT saga_state_is_known CHECK (state IN ('running', 'unwinding', 'done', 'unwound', 'stuck')),
    executor_id TEXT NOT NULL,
    fence INTEGER NOT NULL CONSTRAINT saga_fence_is_in_range CHECK (fence >= 0),
    event_count INTEGER NOT NULL CONSTRAINT saga_event_count_is_in_range CHECK (event_count >= 0),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    CONSTRAINT saga_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX saga_by_state ON saga (state, time_created, id);

CREATE INDEX saga_by_time ON saga (time_created, id);

CREATE INDEX saga_unfinished ON saga (executor_id, id) WHERE state IN ('running', 'unwinding');

CREATE TABLE saga_event (
    saga_id TEXT NOT NULL,
    number INTEGER NOT NULL CONSTRAINT saga_event_number_is_in_range CHECK (number >= 0),
    label TEXT NOT NULL,
    kind TEXT NOT NULL CONSTRAINT saga_event_kind_is_known CHECK (kind IN ('started', 'succeeded', 'failed', 'undo_started', 'undo_finished', 'undo_failed')),
    data TEXT,
    time TEXT NOT NULL,
    CONSTRAINT saga_event_pkey PRIMARY KEY (saga_id, number)
)
 STRICT;

CREATE TABLE saga_lease (
    holder_id TEXT NOT NULL CONSTRAINT saga_lease_holder_id_is_an_id CHECK (length(holder_id) = 36),
    saga_id TEXT NOT NULL,
    time_taken TEXT NOT NULL,
    CONSTRAINT saga_lease_pkey PRIMARY KEY (holder_id)
)
 STRICT;

CREATE INDEX saga_lease_by_saga ON saga_lease (saga_id);

CREATE TABLE schema_version (
    version INTEGER NOT NULL CONSTRAINT schema_version_version_is_in_range CHECK (version >= 1),
    name TEXT NOT NULL,
    time_applied TEXT NOT NULL,
    CONSTRAINT schema_version_pkey PRIMARY KEY (version)
)
 STRICT;

CREATE TABLE silo (
    id TEXT NOT NULL CONSTRAINT silo_id_is_an_id CHECK (length(id) = 36),
    name TEXT NOT NULL CONSTRAINT silo_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    CONSTRAINT silo_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE UNIQUE INDEX silo_name_unique ON silo (name) WHERE time_deleted IS NULL;

CREATE TABLE sled (
    id TEXT NOT NULL CONSTRAINT sled_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT sled_rcgen_is_in_range CHECK (rcgen >= 1),
    rack_id TEXT NOT NULL CONSTRAINT sled_rack_id_is_an_id CHECK (length(rack_id) = 36),
    serial_number TEXT NOT NULL,
    part_number TEXT NOT NULL,
    revision INTEGER NOT NULL CONSTRAINT sled_revision_is_in_range CHECK (revision >= 0),
    ip TEXT NOT NULL CONSTRAINT sled_ip_is_ipv6 CHECK (ip LIKE '%:%' AND ip NOT LIKE '%[%'),
    port INTEGER NOT NULL CONSTRAINT sled_port_is_in_range CHECK (port >= 1 AND port <= 65535),
    sled_policy TEXT NOT NULL CONSTRAINT sled_sled_policy_is_known CHECK (sled_policy IN ('in_service', 'no_provision', 'expunged')),
    sled_state TEXT NOT NULL CONSTRAINT sled_sled_state_is_known CHECK (sled_state IN ('active', 'decommissioned')),
    CONSTRAINT sled_pkey PRIMARY KEY (id),
    CONSTRAINT sled_decommissioned_is_expunged CHECK (sled_state <> 'decommissioned' OR sled_policy = 'expunged')
)
 STRICT;

CREATE UNIQUE INDEX sled_serial_unique ON sled (serial_number, part_number) WHERE time_deleted IS NULL;

CREATE TABLE snapshot (
    id TEXT NOT NULL CONSTRAINT snapshot_id_is_an_id CHECK (length(id) = 36),
    project_id TEXT NOT NULL CONSTRAINT snapshot_project_id_is_an_id CHECK (length(project_id) = 36),
    name TEXT NOT NULL CONSTRAINT snapshot_name_has_a_length CHECK (length(name) BETWEEN 1 AND 63),
    description TEXT NOT NULL,
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    disk_id TEXT NOT NULL CONSTRAINT snapshot_disk_id_is_an_id CHECK (length(disk_id) = 36),
    volume_id TEXT NOT NULL CONSTRAINT snapshot_volume_id_is_an_id CHECK (length(volume_id) = 36),
    destination_volume_id TEXT NOT NULL CONSTRAINT snapshot_destination_volume_id_is_an_id CHECK (length(destination_volume_id) = 36),
    gen INTEGER DEFAULT '1' NOT NULL CONSTRAINT snapshot_gen_is_in_range CHECK (gen >= 1),
    state TEXT NOT NULL CONSTRAINT snapshot_state_is_known CHECK (state IN ('creating', 'ready', 'faulted', 'destroyed')),
    block_size INTEGER NOT NULL CONSTRAINT snapshot_block_size_is_known CHECK (block_size IN (512, 2048, 4096)),
    size_bytes INTEGER NOT NULL CONSTRAINT snapshot_size_bytes_is_in_range CHECK (size_bytes >= 1),
    CONSTRAINT snapshot_pkey PRIMARY KEY (id),
    CONSTRAINT snapshot_deleted_is_destroyed CHECK (time_deleted IS NULL OR state = 'destroyed')
)
 STRICT;

CREATE INDEX snapshot_by_destination_volume ON snapshot (destination_volume_id);

CREATE INDEX snapshot_by_disk ON snapshot (disk_id);

CREATE INDEX snapshot_by_project ON snapshot (project_id, id) WHERE time_deleted IS NULL;

CREATE INDEX snapshot_by_volume ON snapshot (volume_id);

CREATE UNIQUE INDEX snapshot_name_unique ON snapshot (project_id, name) WHERE time_deleted IS NULL;

CREATE TABLE snapshot_ledger (
    snapshot_id TEXT NOT NULL CONSTRAINT snapshot_ledger_snapshot_id_is_an_id CHECK (length(snapshot_id) = 36),
    time_created TEXT NOT NULL,
    extent_size_bytes INTEGER NOT NULL CONSTRAINT snapshot_ledger_extent_size_bytes_is_in_range CHECK (extent_size_bytes >= 1),
    extent_digests TEXT NOT NULL,
    CONSTRAINT snapshot_ledger_pkey PRIMARY KEY (snapshot_id)
)
 STRICT;

CREATE TABLE survivor_decision (
    volume_id TEXT NOT NULL CONSTRAINT survivor_decision_volume_id_is_an_id CHECK (length(volume_id) = 36),
    survivor_region_id TEXT NOT NULL CONSTRAINT survivor_decision_survivor_region_id_is_an_id CHECK (length(survivor_region_id) = 36),
    time_decided TEXT NOT NULL,
    CONSTRAINT survivor_decision_pkey PRIMARY KEY (volume_id, survivor_region_id)
)
 STRICT;

CREATE TABLE upstairs_repair_notification (
    time TEXT NOT NULL,
    repair_id TEXT NOT NULL CONSTRAINT upstairs_repair_notification_repair_id_is_an_id CHECK (length(repair_id) = 36),
    repair_type TEXT NOT NULL CONSTRAINT upstairs_repair_notification_repair_type_is_known CHECK (repair_type IN ('live', 'reconciliation')),
    upstairs_id TEXT NOT NULL CONSTRAINT upstairs_repair_notification_upstairs_id_is_an_id CHECK (length(upstairs_id) = 36),
    session_id TEXT NOT NULL CONSTRAINT upstairs_repair_notification_session_id_is_an_id CHECK (length(session_id) = 36),
    region_id TEXT NOT NULL CONSTRAINT upstairs_repair_notification_region_id_is_an_id CHECK (length(region_id) = 36),
    target_ip TEXT NOT NULL CONSTRAINT upstairs_repair_notification_target_ip_is_ipv6 CHECK (target_ip LIKE '%:%' AND target_ip NOT LIKE '%[%'),
    target_port INTEGER NOT NULL CONSTRAINT upstairs_repair_notification_target_port_is_in_range CHECK (target_port >= 1 AND target_port <= 65535),
    notification_type TEXT NOT NULL CONSTRAINT upstairs_repair_notification_notification_type_is_known CHECK (notification_type IN ('started', 'succeeded', 'failed')),
    CONSTRAINT upstairs_repair_notification_pkey PRIMARY KEY (repair_id, upstairs_id, session_id, region_id, notification_type)
)
 STRICT;

CREATE INDEX upstairs_repair_notification_by_region ON upstairs_repair_notification (region_id, notification_type);

CREATE TABLE upstairs_repair_progress (
    repair_id TEXT NOT NULL CONSTRAINT upstairs_repair_progress_repair_id_is_an_id CHECK (length(repair_id) = 36),
    time TEXT NOT NULL,
    current_item INTEGER NOT NULL CONSTRAINT upstairs_repair_progress_current_item_is_in_range CHECK (current_item >= 0),
    total_items INTEGER NOT NULL CONSTRAINT upstairs_repair_progress_total_items_is_in_range CHECK (total_items >= 0),
    CONSTRAINT upstairs_repair_progress_pkey PRIMARY KEY (repair_id, time, current_item, total_items)
)
 STRICT;

CREATE TABLE user_data_export (
    id TEXT NOT NULL CONSTRAINT user_data_export_id_is_an_id CHECK (length(id) = 36),
    state TEXT NOT NULL CONSTRAINT user_data_export_state_is_known CHECK (state IN ('requested', 'assigning', 'live', 'deleting', 'deleted')),
    operating_saga_id TEXT CONSTRAINT user_data_export_operating_saga_id_is_an_id CHECK (length(operating_saga_id) = 36),
    generation INTEGER DEFAULT '1' NOT NULL CONSTRAINT user_data_export_generation_is_in_range CHECK (generation >= 1),
    resource_id TEXT NOT NULL CONSTRAINT user_data_export_resource_id_is_an_id CHECK (length(resource_id) = 36),
    resource_type TEXT NOT NULL CONSTRAINT user_data_export_resource_type_is_known CHECK (resource_type IN ('snapshot', 'image')),
    resource_deleted INTEGER NOT NULL CONSTRAINT user_data_export_resource_deleted_is_yes_or_no CHECK (resource_deleted IN (FALSE, TRUE)),
    pantry_ip TEXT CONSTRAINT user_data_export_pantry_ip_is_ipv6 CHECK (pantry_ip LIKE '%:%' AND pantry_ip NOT LIKE '%[%'),
    pantry_port INTEGER CONSTRAINT user_data_export_pantry_port_is_in_range CHECK (pantry_port >= 1 AND pantry_port <= 65535),
    volume_id TEXT CONSTRAINT user_data_export_volume_id_is_an_id CHECK (length(volume_id) = 36),
    CONSTRAINT user_data_export_pkey PRIMARY KEY (id),
    CONSTRAINT user_data_export_live_is_somewhere CHECK (state <> 'live' OR (pantry_ip IS NOT NULL AND pantry_port IS NOT NULL AND volume_id IS NOT NULL))
)
 STRICT;

CREATE INDEX user_data_export_by_state ON user_data_export (state);

CREATE INDEX user_data_export_by_type ON user_data_export (resource_type);

CREATE INDEX user_data_export_by_volume ON user_data_export (volume_id);

CREATE UNIQUE INDEX user_data_export_resource_unique ON user_data_export (resource_id) WHERE state <> 'deleted';

CREATE TABLE virtual_provisioning_collection (
    id TEXT NOT NULL CONSTRAINT virtual_provisioning_collection_id_is_an_id CHECK (length(id) = 36),
    time_modified TEXT NOT NULL,
    collection_type TEXT NOT NULL CONSTRAINT virtual_provisioning_collection_collection_type_is_known CHECK (collection_type IN ('project', 'silo', 'fleet')),
    virtual_disk_bytes_provisioned INTEGER NOT NULL CONSTRAINT virtual_provisioning_collection_virtual_disk_bytes_provisioned_is_in_range CHECK (virtual_disk_bytes_provisioned >= 0),
    CONSTRAINT virtual_provisioning_collection_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE virtual_provisioning_resource (
    id TEXT NOT NULL CONSTRAINT virtual_provisioning_resource_id_is_an_id CHECK (length(id) = 36),
    time_modified TEXT NOT NULL,
    resource_type TEXT NOT NULL CONSTRAINT virtual_provisioning_resource_resource_type_is_known CHECK (resource_type IN ('disk', 'snapshot')),
    project_id TEXT NOT NULL CONSTRAINT virtual_provisioning_resource_project_id_is_an_id CHECK (length(project_id) = 36),
    virtual_disk_bytes_provisioned INTEGER NOT NULL CONSTRAINT virtual_provisioning_resource_virtual_disk_bytes_provisioned_is_in_range CHECK (virtual_disk_bytes_provisioned >= 0),
    CONSTRAINT virtual_provisioning_resource_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX virtual_provisioning_resource_by_project ON virtual_provisioning_resource (project_id);

CREATE TABLE vmm (
    id TEXT NOT NULL CONSTRAINT vmm_id_is_an_id CHECK (length(id) = 36),
    instance_id TEXT NOT NULL CONSTRAINT vmm_instance_id_is_an_id CHECK (length(instance_id) = 36),
    sled_id TEXT NOT NULL CONSTRAINT vmm_sled_id_is_an_id CHECK (length(sled_id) = 36),
    propolis_ip TEXT NOT NULL CONSTRAINT vmm_propolis_ip_is_ipv6 CHECK (propolis_ip LIKE '%:%' AND propolis_ip NOT LIKE '%[%'),
    propolis_port INTEGER NOT NULL CONSTRAINT vmm_propolis_port_is_in_range CHECK (propolis_port >= 1 AND propolis_port <= 65535),
    state TEXT NOT NULL CONSTRAINT vmm_state_is_known CHECK (state IN ('creating', 'starting', 'running', 'rebooting', 'migrating', 'stopping', 'stopped', 'failed', 'destroyed', 'saga_unwound')),
    state_generation INTEGER DEFAULT '1' NOT NULL CONSTRAINT vmm_state_generation_is_in_range CHECK (state_generation >= 1),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    CONSTRAINT vmm_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX vmm_by_instance ON vmm (instance_id) WHERE time_deleted IS NULL;

CREATE INDEX vmm_by_sled ON vmm (sled_id) WHERE time_deleted IS NULL;

CREATE TABLE volume (
    id TEXT NOT NULL CONSTRAINT volume_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT volume_rcgen_is_in_range CHECK (rcgen >= 1),
    data TEXT NOT NULL,
    resources_to_clean_up TEXT,
    CONSTRAINT volume_pkey PRIMARY KEY (id),
    CONSTRAINT volume_resources_are_of_a_deleted_volume CHECK (resources_to_clean_up IS NULL OR time_deleted IS NOT NULL)
)
 STRICT;

CREATE INDEX volume_by_time_deleted ON volume (time_deleted, id) WHERE time_deleted IS NOT NULL;

CREATE TABLE volume_at_rest (
    volume_id TEXT NOT NULL CONSTRAINT volume_at_rest_volume_id_is_an_id CHECK (length(volume_id) = 36),
    generation INTEGER NOT NULL CONSTRAINT volume_at_rest_generation_is_in_range CHECK (generation >= 0),
    time_proved TEXT NOT NULL,
    CONSTRAINT volume_at_rest_pkey PRIMARY KEY (volume_id)
)
 STRICT;

CREATE TABLE volume_repair (
    volume_id TEXT NOT NULL CONSTRAINT volume_repair_volume_id_is_an_id CHECK (length(volume_id) = 36),
    repair_id TEXT NOT NULL CONSTRAINT volume_repair_repair_id_is_an_id CHECK (length(repair_id) = 36),
    time_taken TEXT NOT NULL,
    CONSTRAINT volume_repair_pkey PRIMARY KEY (volume_id)
)
 STRICT;

CREATE INDEX volume_repair_by_holder ON volume_repair (repair_id);

CREATE TABLE volume_repair_queue (
    volume_id TEXT NOT NULL CONSTRAINT volume_repair_queue_volume_id_is_an_id CHECK (length(volume_id) = 36),
    repair_id TEXT NOT NULL CONSTRAINT volume_repair_queue_repair_id_is_an_id CHECK (length(repair_id) = 36),
    time_queued TEXT NOT NULL,
    time_asked TEXT NOT NULL,
    overtaken INTEGER DEFAULT '0' NOT NULL CONSTRAINT volume_repair_queue_overtaken_is_in_range CHECK (overtaken >= 0),
    CONSTRAINT volume_repair_queue_pkey PRIMARY KEY (volume_id, repair_id)
)
 STRICT;

CREATE INDEX volume_repair_queue_by_waiter ON volume_repair_queue (repair_id);

CREATE INDEX volume_repair_queue_in_order ON volume_repair_queue (volume_id, time_queued, repair_id);

CREATE TABLE volume_resource_usage (
    usage_id TEXT NOT NULL CONSTRAINT volume_resource_usage_usage_id_is_an_id CHECK (length(usage_id) = 36),
    volume_id TEXT NOT NULL CONSTRAINT volume_resource_usage_volume_id_is_an_id CHECK (length(volume_id) = 36),
    usage_type TEXT NOT NULL CONSTRAINT volume_resource_usage_usage_type_is_known CHECK (usage_type IN ('read_only_region', 'region_snapshot')),
    region_id TEXT CONSTRAINT volume_resource_usage_region_id_is_an_id CHECK (length(region_id) = 36),
    region_snapshot_dataset_id TEXT CONSTRAINT volume_resource_usage_region_snapshot_dataset_id_is_an_id CHECK (length(region_snapshot_dataset_id) = 36),
    region_snapshot_region_id TEXT CONSTRAINT volume_resource_usage_region_snapshot_region_id_is_an_id CHECK (length(region_snapshot_region_id) = 36),
    region_snapshot_snapshot_id TEXT CONSTRAINT volume_resource_usage_region_snapshot_snapshot_id_is_an_id CHECK (length(region_snapshot_snapshot_id) = 36),
    CONSTRAINT volume_resource_usage_pkey PRIMARY KEY (usage_id),
    CONSTRAINT volume_resource_usage_exactly_one_usage_source CHECK ((usage_type = 'read_only_region' AND region_id IS NOT NULL AND region_snapshot_dataset_id IS NULL AND region_snapshot_region_id IS NULL AND region_snapshot_snapshot_id IS NULL) OR (usage_type = 'region_snapshot' AND region_id IS NULL AND region_snapshot_dataset_id IS NOT NULL AND region_snapshot_region_id IS NOT NULL AND region_snapshot_snapshot_id IS NOT NULL))
)
 STRICT;

CREATE UNIQUE INDEX one_record_per_volume_and_region ON volume_resource_usage (volume_id, region_id) WHERE usage_type = 'read_only_region';

CREATE UNIQUE INDEX one_record_per_volume_and_snapshot ON volume_resource_usage (volume_id, region_snapshot_dataset_id, region_snapshot_region_id, region_snapshot_snapshot_id) WHERE usage_type = 'region_snapshot';

CREATE INDEX volume_resource_usage_by_region ON volume_resource_usage (region_id) WHERE usage_type = 'read_only_region';

CREATE INDEX volume_resource_usage_by_snapshot ON volume_resource_usage (region_snapshot_dataset_id, region_snapshot_region_id, region_snapshot_snapshot_id) WHERE usage_type = 'region_snapshot';

CREATE INDEX volume_resource_usage_by_volume ON volume_resource_usage (volume_id);

CREATE TABLE zpool (
    id TEXT NOT NULL CONSTRAINT zpool_id_is_an_id CHECK (length(id) = 36),
    time_created TEXT NOT NULL,
    time_modified TEXT NOT NULL,
    time_deleted TEXT,
    rcgen INTEGER DEFAULT '1' NOT NULL CONSTRAINT zpool_rcgen_is_in_range CHECK (rcgen >= 1),
    sled_id TEXT NOT NULL CONSTRAINT zpool_sled_id_is_an_id CHECK (length(sled_id) = 36),
    physical_disk_id TEXT NOT NULL CONSTRAINT zpool_physical_disk_id_is_an_id CHECK (length(physical_disk_id) = 36),
    control_plane_storage_buffer INTEGER NOT NULL CONSTRAINT zpool_control_plane_storage_buffer_is_in_range CHECK (control_plane_storage_buffer >= 0),
    CONSTRAINT zpool_pkey PRIMARY KEY (id)
)
 STRICT;

CREATE INDEX zpool_by_physical_disk ON zpool (physical_disk_id, id) WHERE time_deleted IS NULL;

CREATE INDEX zpool_by_sled ON zpool (sled_id) WHERE time_deleted IS NULL;
