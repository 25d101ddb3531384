DROP TABLE dbo.ASPStateRequests
GO
-- Created:
-- Not on Babelfish: see up.
DROP PROCEDURE dbo.GetMajorVersion
GO
DROP PROCEDURE dbo.DeleteExpiredSessions, dbo.CreateTempTables, dbo.TempResetTimeout, dbo.TempRemoveStateItem,
    dbo.TempUpdateStateItemLongNullShort, dbo.TempUpdateStateItemLong, dbo.TempUpdateStateItemShortNullLong, dbo.TempUpdateStateItemShort,
    dbo.TempInsertStateItemLong, dbo.TempInsertStateItemShort, dbo.TempInsertUninitializedItem, dbo.TempReleaseStateItemExclusive,
    dbo.TempGetStateItemExclusive, dbo.TempGetStateItem, dbo.TempGetStateItemExclusive2, dbo.TempGetStateItem2,
    dbo.TempGetStateItemExclusive3, dbo.TempGetStateItem3, dbo.TempGetAppID, dbo.GetHashCode, dbo.TempGetVersion
GO
DROP TABLE dbo.ASPStateTempApplications
GO
DROP TABLE dbo.ASPStateTempSessions
