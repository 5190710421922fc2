-- Health of a Mirror or a ReplicationPeer, for Argo CD. Uses nothing but the core of Lua 5.1: Argo CD gives no libraries.

local metadata, status = obj.metadata or {}, obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function health(word, condition)
  return {status = word, message = condition.reason .. ": " .. condition.message}
end

local ready, reconciling, stalled = conditions.Ready, conditions.Reconciling, conditions.Stalled
if ready == nil then
  return {status = "Progressing", message = "waiting for the operator's first look"}
end
if status.observedGeneration ~= nil and metadata.generation ~= nil and status.observedGeneration < metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to see the latest change"}
end
-- Stalled is true exactly when manual action is required.
if stalled ~= nil and stalled.status == "True" then
  return health("Degraded", stalled)
end
-- Beside Ready it reports tables that are added while the others stream.
if reconciling ~= nil and reconciling.status == "True" and ready.status ~= "True" then
  return health("Progressing", reconciling)
end
if ready.status == "True" then
  if ready.reason == "Suspended" then
    return health("Suspended", ready)
  end
  -- The Mirror does its work, so it is Ready; but failed tables need attention.
  if ready.reason == "StreamingWithFailedTables" then
    return health("Degraded", ready)
  end
  return health("Healthy", ready)
end
if ready.status == "False" then
  return health("Degraded", ready)
end
return health("Progressing", ready)
